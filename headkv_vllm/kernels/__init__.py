# SPDX-License-Identifier: Apache-2.0
"""What a step does on a GPU: Triton kernels, each with a plain twin, and nothing of vLLM.

No function here reads a value of the device on the host, and none has a size that depends on one:
grids are made for the most that can be, and programs that have nothing to do end at once.
Kernels are not compiled anew for values that change from layer to layer or from step to step: a
request would wait for that.
"""
