# SPDX-License-Identifier: Apache-2.0
"""The backend where FlashAttention reads the prompts, and our own Triton kernels do the rest."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from typing_extensions import override
from vllm.config.cache import CacheDType
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends import fa_utils

from headkv_vllm.engine.attention.triton import (
    HeadKVTritonBackend,
    HeadKVTritonImpl,
    HeadKVTritonMetadata,
    HeadKVTritonMetadataBuilder,
)
from headkv_vllm.kernels.chunk_attention import attend_chunks
from headkv_vllm.kernels.dense_tables import dense_tables
from headkv_vllm.kernels.inputs import LayerInputs


class HeadKVFlashAttentionMetadataBuilder(HeadKVTritonMetadataBuilder):
    """Adds the block tables of prompts, which FlashAttention takes."""

    @override
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HeadKVTritonMetadata:
        """Plan the step that `common_attn_metadata` describes."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if metadata.chunks is None:
            return metadata
        return replace(metadata, dense=dense_tables(metadata.rows, metadata.chunks))


class HeadKVFlashAttentionImpl(HeadKVTritonImpl):
    """One layer's attention. While a prompt is read, all heads attend the same blocks."""

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._fa_version = fa_utils.get_flash_attn_version(head_size=self.head_size)

    @override
    def _attend_chunks(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        inputs: LayerInputs,
        attn_metadata: HeadKVTritonMetadata,
        output: torch.Tensor,
    ) -> None:
        """FlashAttention takes all tokens. Our kernels then overwrite its results for requests that
        attend by head, or compute a single token.
        """
        chunks, dense = attn_metadata.chunks, attn_metadata.dense
        assert chunks is not None and dense is not None
        num_tokens = len(attn_metadata.slot_mapping)
        keys, values = kv_cache.transpose(1, 2).chunk(2, -1)
        assert self._fa_version is not None, "the backend serves where FlashAttention does"
        fa_utils.flash_attn_varlen_func(  # type: ignore[attr-defined]  # not where it is missing
            q=query[:num_tokens],
            k=canonicalize_singleton_dim_strides(keys),
            v=canonicalize_singleton_dim_strides(values),
            out=output[:num_tokens],
            cu_seqlens_q=chunks.query_start_loc,
            max_seqlen_q=chunks.max_query_len,
            seqused_k=dense.seq_lens,
            max_seqlen_k=chunks.max_seq_len,
            softmax_scale=self.scale,
            causal=True,
            softcap=self.logits_soft_cap,
            block_table=dense.block_table,
            fa_version=self._fa_version,
        )
        attend_chunks(query, attn_metadata.rows, chunks, inputs, output, only_by_head=True)


class HeadKVFlashAttentionBackend(HeadKVTritonBackend):
    """For entries of the model's own type."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[CacheDType]] = ["auto", "float16", "bfloat16"]

    @classmethod
    @override
    def supports_head_size(cls, head_size: int) -> bool:
        is_there = fa_utils.get_flash_attn_version(head_size=head_size) is not None
        return is_there and head_size % 8 == 0 and head_size <= 256

    @staticmethod
    @override
    def get_impl_cls() -> type[HeadKVFlashAttentionImpl]:
        return HeadKVFlashAttentionImpl

    @staticmethod
    @override
    def get_builder_cls() -> type[HeadKVFlashAttentionMetadataBuilder]:
        return HeadKVFlashAttentionMetadataBuilder
