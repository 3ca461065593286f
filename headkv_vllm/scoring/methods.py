# SPDX-License-Identifier: Apache-2.0
"""What one answer step's attention says of each head: the retrieval score r and HeadKV's score r2.

A sample's score is the sum over the steps of its answer; a model's, the mean over its samples.
"""

from typing import Final, Literal, Protocol, get_args

from torch import Tensor

Method = Literal["grad", "r2", "r"]
"""How heads are scored: by `sensitivity`, or by one of `STEP_SCORES`."""
METHODS: Final[tuple[Method, ...]] = get_args(Method)


class StepScore(Protocol):
    """One layer's attention at one answer step, as one number per head."""

    def __call__(self, attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
        """`[num_heads]` float32, from 0 to 1.

        attention: `[num_heads, num_tokens]` float32, each head's softmax row for the last token.
        evidence: `[num_tokens]` bool, True where the evidence is; somewhere True.
        holds_token: `[num_tokens]` bool, True where the prompt has the token that this step
            generates.
        """


def retrieval_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    """The retrieval score r of arXiv 2404.15574, see `StepScore`.

    A head scores 1 / (number of evidence tokens) when the position that it attends most, the
    earliest of equals, is evidence and holds the token that is generated. The paper counts a
    token of the evidence once, however often it is copied; its code and this count every step.
    """
    best = attention.argmax(dim=1)
    copied = evidence & holds_token
    return copied[best].float() / evidence.sum()


def evidence_score(attention: Tensor, evidence: Tensor, holds_token: Tensor) -> Tensor:
    """The retrieval-reasoning score r2 of HeadKV (arXiv 2410.19258), see `StepScore`.

    Of the k positions that a head attends most, k being the number of evidence tokens, those
    that are evidence add their weight / k. Of equal weights the earlier count. `holds_token` is
    not used. This is the paper's sum; its code also multiplies by ten and divides by the number
    of answer tokens, which scales a sample and leaves the heads' ratios in it as they are.
    """
    num_evidence = int(evidence.sum())
    # topk's values are certain, which of equal ones it takes is not.
    least = attention.topk(num_evidence, dim=1).values[:, -1:]
    above, equal = attention > least, attention == least
    num_equal = num_evidence - above.sum(dim=1, keepdim=True)
    top = above | (equal & (equal.cumsum(dim=1) <= num_equal))
    return attention.masked_fill(~(top & evidence), 0.0).sum(dim=1) / num_evidence


STEP_SCORES: Final[dict[Method, StepScore]] = {"r2": evidence_score, "r": retrieval_score}
