# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

from hypothesis import settings

# A first call that imports or compiles, on a machine that is busy, says nothing of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
