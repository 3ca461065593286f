# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headkv_vllm.head_scores.scores import fold_query_heads
from tests.head_scores import reference


@settings(deadline=None)
@given(data=st.data(), how=st.sampled_from(["mean", "max", "sum"]))
def test_folding_equals_its_plain_twin(data, how):
    num_layers, num_kv_heads, size = (data.draw(st.integers(1, 5)) for _ in range(3))
    shape = (num_layers, num_kv_heads * size)
    scores = data.draw(arrays(np.float64, shape, elements=st.floats(0, 1e6)))
    folded = fold_query_heads(scores, num_kv_heads, how)
    assert folded.dtype == np.float64
    assert folded.shape == (num_layers, num_kv_heads)
    np.testing.assert_allclose(folded, reference.fold_query_heads(scores, num_kv_heads, how))


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [[2, 6]]), ("max", [[3, 9]]), ("sum", [[4, 12]])]
)
def test_neighbouring_query_heads_share_a_kv_head(how, expected):
    scores = np.array([[1.0, 3.0, 9.0, 3.0]])
    assert fold_query_heads(scores, 2, how).tolist() == expected
