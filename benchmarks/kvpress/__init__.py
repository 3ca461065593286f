# SPDX-License-Identifier: Apache-2.0
"""kvpress on the prompts of an evaluation, at as many kept tokens as ours."""
