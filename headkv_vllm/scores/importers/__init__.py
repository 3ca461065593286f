# SPDX-License-Identifier: Apache-2.0
"""Head scores in other programs' formats, read into one score per query head."""
