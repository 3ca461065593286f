# SPDX-License-Identifier: Apache-2.0
"""What developers run and users never do; not in the wheel."""
