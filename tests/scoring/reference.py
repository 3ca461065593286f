# SPDX-License-Identifier: Apache-2.0
"""Plain reference of `headkv_vllm.scoring`: loops in place of vector operations.

Each function has the name and the arguments of the function that it is compared with.
"""

import torch
from torch import Tensor

from headkv_vllm.scoring.attention_rows import AnswerRows


def retrieval_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    scores = []
    for row in attention.tolist():
        best = row.index(max(row))
        scores.append(1 / sum(evidence.tolist()) if evidence[best] and holds_token[best] else 0.0)
    return torch.tensor(scores, dtype=torch.float32)


def evidence_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    num_evidence = sum(evidence.tolist())
    scores = []
    for row in attention.tolist():
        top = sorted(range(len(row)), key=lambda position: -row[position])[:num_evidence]
        scores.append(sum(row[position] / num_evidence for position in top if evidence[position]))
    return torch.tensor(scores, dtype=torch.float32)


def row_logits(rows: AnswerRows, prompt_key: torch.Tensor) -> torch.Tensor:
    query, key = rows.query, rows.key
    num_heads, num_rows, _ = query.shape
    num_prompt_tokens = prompt_key.shape[1]
    logits = torch.full((num_heads, num_rows, num_prompt_tokens + num_rows), float("-inf"))
    for head in range(num_heads):
        kv_head = head // (num_heads // len(key))
        keys = [*prompt_key[kv_head], *key[kv_head]]
        for row in range(num_rows):
            end = num_prompt_tokens + row + 1
            first = 0 if rows.sliding_window is None else end - rows.sliding_window
            for position in range(first, end):
                product = query[head, row].double() @ keys[position].double()
                logits[head, row, position] = float(product) * rows.scale
    return logits
