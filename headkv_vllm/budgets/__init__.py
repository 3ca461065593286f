# SPDX-License-Identifier: Apache-2.0
"""From head scores and a request's block counts to the number of head blocks of every head."""
