# SPDX-License-Identifier: Apache-2.0
"""Refuses at start-up what the backend cannot serve, with the name of the flag or feature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from headkv_vllm.config import Settings
from headkv_vllm.engine.layer_kinds import ANOTHER_BACKEND, FULL_ATTENTION_ONLY, check_layers
from headkv_vllm.engine.names import ASYNC_SCHEDULER_PATH, SCHEDULER_PATH
from headkv_vllm.errors import UnsupportedError, shown
from headkv_vllm.head_scores.layer_types import FULL, SLIDING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

BLOCK_SIZE_MULTIPLE = 16


class Rule(NamedTuple):
    """found: gives the unsupported value, or None. reason: what the user can do about it."""

    feature: str
    found: Callable[["VllmConfig"], object]
    reason: str


@dataclass(frozen=True)
class Limits:
    """The limits of a platform's backends.

    cache_dtypes: allowed values of `--kv-cache-dtype`, besides the model's dtype.
    min_window: the smallest observation window. max_window_queries: a limit for the window times
        the query heads of a KV head. max_drafts: the maximum of speculative tokens per step.
    compresses_again: whether the backend compresses requests while they generate.
    sliding_windows: whether some layers may have sliding-window attention.
    sinks: whether layers may have attention sinks.
    """

    cache_dtypes: tuple[str, ...] = ()
    min_window: int = 1
    max_window_queries: int | None = None
    max_drafts: int | None = None
    compresses_again: bool = True
    sliding_windows: bool = True
    sinks: bool = True


def check_supported(vllm_config: "VllmConfig", settings: Settings, limits: Limits) -> None:
    """Raises UnsupportedError for the first rule or limit that `vllm_config` breaks."""
    for rule in RULES:
        found = rule.found(vllm_config)
        if found is not None:
            raise UnsupportedError(
                f"--attention-backend headkv does not support {rule.feature} "
                f"({shown(found)}): {rule.reason}"
            )
    check_layers(vllm_config, limits.sliding_windows, limits.sinks)
    _check_cache_dtype(vllm_config, limits.cache_dtypes)
    _check_window(vllm_config, settings, limits)
    _check_drafts(vllm_config, limits.max_drafts)
    _check_chunks(vllm_config, settings)
    reason = why_not_again(vllm_config, settings, limits)
    if settings.compress_every and reason:
        raise UnsupportedError(
            f"--attention-backend headkv does not support compress_every="
            f"{settings.compress_every}: {reason}; it must be 0"
        )


def why_not_again(vllm_config: "VllmConfig", settings: Settings, limits: Limits) -> str | None:
    """Why no request can be compressed while it generates; None if requests can."""
    from headkv_vllm.engine.settings import query_blocks

    if not limits.compresses_again:
        return "the backend for this platform compresses prompts only"
    block_size = vllm_config.cache_config.block_size
    if not query_blocks(vllm_config, settings, block_size):
        return (
            f"with blocks of {block_size} tokens, a block has no room for the queries of one token"
        )
    return None


def _check_cache_dtype(vllm_config: "VllmConfig", cache_dtypes: tuple[str, ...]) -> None:
    cache_dtype = vllm_config.cache_config.cache_dtype
    model_dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    declared = _declared_cache_dtype(vllm_config)
    if declared not in ("auto", *cache_dtypes) and cache_dtype in ("auto", declared):
        raise UnsupportedError(
            "--attention-backend headkv does not support a quantised KV cache on this platform, "
            f"but this checkpoint declares one: set --kv-cache-dtype {model_dtype}"
        )
    if cache_dtype not in ("auto", model_dtype, *cache_dtypes):
        allowed = f"use {', '.join(cache_dtypes)} or auto" if cache_dtypes else "leave it at auto"
        raise UnsupportedError(
            f"--attention-backend headkv does not support --kv-cache-dtype "
            f"({shown(cache_dtype)}): {allowed}"
        )


def _check_window(vllm_config: "VllmConfig", settings: Settings, limits: Limits) -> None:
    """Raises UnsupportedError for a window outside the limits.

    With a window of 1, a prompt whose other tokens are cached looks like a decode step.
    """
    min_window = max(limits.min_window, 2 if vllm_config.speculative_config else 1)
    max_window = settings.window
    if limits.max_window_queries:
        model_config = vllm_config.model_config
        num_heads = model_config.model_arch_config.total_num_attention_heads
        max_window = limits.max_window_queries * model_config.get_total_num_kv_heads() // num_heads
    if not min_window <= settings.window <= max_window:
        too_small = settings.window < min_window
        allowed = f"at least {min_window}" if too_small else f"at most {max_window}"
        raise UnsupportedError(
            f"--attention-backend headkv does not support window={settings.window} with this "
            f"platform, model and speculation: it must be {allowed}"
        )


def _check_drafts(vllm_config: "VllmConfig", max_drafts: int | None) -> None:
    speculative_config = vllm_config.speculative_config
    asked = speculative_config.num_speculative_tokens if speculative_config else 0
    if max_drafts is not None and asked > max_drafts:
        raise UnsupportedError(
            f"--attention-backend headkv does not support {asked} speculative tokens on this "
            f"platform: use at most {max_drafts}"
        )


def _check_chunks(vllm_config: "VllmConfig", settings: Settings) -> None:
    """Raises UnsupportedError if a step has no room for the window: see `engine.scheduler`."""
    scheduler_config = vllm_config.scheduler_config
    for flag in (
        "max_num_batched_tokens",
        "max_num_scheduled_tokens",
        "long_prefill_token_threshold",
    ):
        value = getattr(scheduler_config, flag) or 0
        if 0 < value < settings.window:
            raise UnsupportedError(
                f"--{flag.replace('_', '-')} {value} is smaller than the headkv setting "
                f"window={settings.window}: it must be at least {settings.window}"
            )


def _hf(vllm_config: "VllmConfig", name: str) -> Any:
    return getattr(vllm_config.model_config.hf_text_config, name, None)


def _declared_cache_dtype(vllm_config: "VllmConfig") -> str:
    """The type of KV cache that vLLM uses for this checkpoint if the flag is auto."""
    from vllm.utils.torch_utils import resolve_kv_cache_dtype_string

    if _cache_scheme(vllm_config):
        return "fp8"  # vLLM's attention layers decide this later, when they are made
    return resolve_kv_cache_dtype_string("auto", vllm_config.model_config)


def _cache_scheme(vllm_config: "VllmConfig") -> dict[str, Any]:
    """How a checkpoint of compressed-tensors quantises its KV cache; empty if it does not."""
    return getattr(vllm_config.quant_config, "kv_cache_scheme", None) or {}


def _scales_per_head(vllm_config: "VllmConfig") -> object:
    strategy = _cache_scheme(vllm_config).get("strategy")
    is_used = vllm_config.cache_config.cache_dtype in ("auto", "fp8")
    return strategy if strategy == "attn_head" and is_used else None


def _layer_types(vllm_config: "VllmConfig") -> object:
    others = set(_hf(vllm_config, "layer_types") or ()) - {FULL, SLIDING}
    return sorted(others) or None


def _speculation(vllm_config: "VllmConfig") -> object:
    speculative_config = vllm_config.speculative_config
    method = speculative_config.method if speculative_config is not None else None
    return None if method in (None, "ngram") else method


def _scheduler(vllm_config: "VllmConfig") -> object:
    scheduler_cls = vllm_config.scheduler_config.scheduler_cls
    return None if scheduler_cls in (None, SCHEDULER_PATH, ASYNC_SCHEDULER_PATH) else scheduler_cls


def _block_size(vllm_config: "VllmConfig") -> object:
    block_size = vllm_config.cache_config.block_size
    return block_size if block_size % BLOCK_SIZE_MULTIPLE else None


def _above_one(name: str) -> Callable[["VllmConfig"], object]:
    def found(vllm_config: "VllmConfig") -> object:
        size = getattr(vllm_config.parallel_config, name)
        return size if size > 1 else None

    return found


def _if(condition: Callable[["VllmConfig"], object]) -> Callable[["VllmConfig"], object]:
    def found(vllm_config: "VllmConfig") -> object:
        return vllm_config.model_config.architecture if condition(vllm_config) else None

    return found


RULES = (
    Rule(
        "encoder-decoder models",
        _if(lambda config: config.model_config.is_encoder_decoder),
        FULL_ATTENTION_ONLY,
    ),
    Rule(
        "pooling models",
        _if(lambda config: config.model_config.runner_type == "pooling"),
        "they generate no tokens, so a smaller cache has no use",
    ),
    Rule("MLA", _if(lambda config: config.model_config.use_mla), ANOTHER_BACKEND),
    Rule(
        "hybrid models",
        _if(lambda config: config.model_config.is_hybrid or config.model_config.is_attention_free),
        FULL_ATTENTION_ONLY,
    ),
    Rule(f"layers of other types than {FULL} and {SLIDING}", _layer_types, FULL_ATTENTION_ONLY),
    Rule(
        "chunked local attention",
        lambda config: _hf(config, "attention_chunk_size"),
        FULL_ATTENTION_ONLY,
    ),
    Rule(
        "dual chunk attention",
        _if(lambda config: _hf(config, "dual_chunk_attention_config")),
        FULL_ATTENTION_ONLY,
    ),
    Rule(
        "layers that share another layer's KV cache",
        lambda config: _hf(config, "num_kv_shared_layers") or None,
        ANOTHER_BACKEND,
    ),
    Rule("ALiBi", _if(lambda config: config.model_config.uses_alibi), ANOTHER_BACKEND),
    Rule(
        "diffusion models",
        _if(lambda config: config.model_config.is_diffusion),
        FULL_ATTENTION_ONLY,
    ),
    Rule(
        "prefix language models",
        _if(lambda config: config.model_config.is_mm_prefix_lm),
        FULL_ATTENTION_ONLY,
    ),
    Rule(
        "--kv-cache-dtype-skip-layers",
        lambda config: config.cache_config.kv_cache_dtype_skip_layers or None,
        "all layers must keep entries of one type",
    ),
    Rule(
        "KV-cache scales for each head, which this checkpoint declares",
        _scales_per_head,
        "set --kv-cache-dtype to the model's dtype",
    ),
    Rule(
        "--enable-return-routed-experts",
        lambda config: config.aux_output_config.enable_return_routed_experts or None,
        "vLLM stores the experts by KV-cache slots, and compression moves these",
    ),
    Rule(
        "KV connectors (--kv-transfer-config)",
        lambda config: config.kv_transfer_config,
        "leave the flag out",
    ),
    Rule(
        "--kv-offloading-size",
        lambda config: config.cache_config.kv_offloading_size,
        "leave the flag out",
    ),
    Rule(
        "--decode-context-parallel-size",
        _above_one("decode_context_parallel_size"),
        "leave it at 1",
    ),
    Rule(
        "--prefill-context-parallel-size",
        _above_one("prefill_context_parallel_size"),
        "leave it at 1",
    ),
    Rule(
        "--enable-dbo and --ubatch-size",
        lambda config: config.parallel_config.use_ubatching or None,
        "a step must be computed in one piece",
    ),
    Rule("speculative decoding by other methods than ngram", _speculation, "use ngram, or none"),
    Rule(
        "attention_config.backend_per_kind",
        lambda config: config.attention_config.backend_per_kind or None,
        "all layers must use one backend",
    ),
    Rule("--scheduler-cls", _scheduler, "the backend brings its own scheduler"),
    Rule("--block-size", _block_size, f"it must be a multiple of {BLOCK_SIZE_MULTIPLE}"),
)
