# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: models, engines in processes of their own, pairs, and reports."""
