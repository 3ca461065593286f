# SPDX-License-Identifier: Apache-2.0
"""Head scores: the file that holds them, and how they are matched with a model."""
