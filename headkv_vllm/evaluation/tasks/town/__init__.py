# SPDX-License-Identifier: Apache-2.0
"""Questions about pages on invented towns: facts that no model can know."""
