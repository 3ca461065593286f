# SPDX-License-Identifier: Apache-2.0
"""The stand-in for CUDA graphs tells what a real one would not do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from tests.engine.helpers.recorded_graph import RecordedGraph, recording


def test_what_was_done_to_tensors_is_done_again() -> None:
    given, result = torch.ones(4), torch.zeros(3)
    graph = RecordedGraph()
    with recording(graph):
        result.copy_((given[1:] * 2).add_(given.sum()))
    given.fill_(3)
    graph.replay()
    assert result.tolist() == [18.0] * 3


def test_what_python_knew_and_where_tensors_were_stays() -> None:
    factor, given, result = 2, torch.ones(3), torch.zeros(3)
    graph = RecordedGraph()
    with recording(graph):
        result.copy_(given * factor)
    factor, given = 5, torch.full((3,), 7.0)
    result.zero_()
    graph.replay()
    assert result.tolist() == [2.0] * 3


def test_the_host_cannot_read() -> None:
    given = torch.ones(3)
    for read in (lambda: given[0].item(), lambda: given.nonzero(), lambda: bool(given.any())):
        with pytest.raises(RuntimeError, match="during a capture"), recording(RecordedGraph()):
            read()


KERNEL = """
import torch, triton, triton.language as tl
from tests.engine.helpers import recorded_graph

@triton.jit
def double(given, result):
    tl.store(result + tl.program_id(0), 2 * tl.load(given + tl.program_id(0)))

recorded_graph.install()
given, result, graph = torch.ones(3), torch.zeros(3), torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    double[(3,)](given, result)
given.fill_(4)
graph.replay()
print(result.tolist())
"""


def test_kernels_are_launched_again(tmp_path: Path) -> None:
    program = tmp_path / "kernel.py"  # Triton reads the source of kernels
    program.write_text(KERNEL)
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": here}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert done.stdout == "[8.0, 8.0, 8.0]\n", done.stderr
