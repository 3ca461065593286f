# SPDX-License-Identifier: Apache-2.0
"""The code blocks of docs/adding-a-policy.md run."""

import re
from pathlib import Path

from headkv_vllm.budgets.policies import POLICIES

GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-policy.md"


def test_every_code_block_of_the_guide_runs(monkeypatch):
    monkeypatch.setitem(POLICIES, "alternating", None)  # removed again when the test ends
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks and {language for language, _ in blocks} == {"python"}
    names = {}
    for _, code in blocks:
        exec(compile(code, str(GUIDE), "exec"), names)
    assert POLICIES["alternating"] is names["ALTERNATING"]
