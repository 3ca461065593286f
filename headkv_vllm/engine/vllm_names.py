# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM's that the plugin uses, and what for. Imports nothing of vLLM.

`python -m headkv_vllm.engine.vllm_source` looks them up in the source of a version.
"""

from typing import NamedTuple


class Used(NamedTuple):
    """A name in one of vLLM's modules.

    reason: what it is used for. members: of the class, that we read, call or override.
    parameters: of the function or method, that we pass by name or take by position.
    """

    module: str
    name: str
    reason: str
    members: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


_BACKEND = "vllm.v1.attention.backend"
_CPU_BACKEND = "vllm.v1.attention.backends.cpu_attn"
_MANAGER = "vllm.v1.core.single_type_kv_cache_manager"
_SCHEDULER = "vllm.v1.core.sched.scheduler"
_KERNELS = "vllm._custom_ops"

_FORWARD = (
    *("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
    *("output_scale", "output_block_scale"),
)

ENTRY_POINTS = (
    Used(
        "vllm.platforms",
        "builtin_platform_plugins",
        "our platform stands in where vLLM's own would be the plain CPU one",
    ),
    Used("vllm.platforms", "current_platform", "whether a platform of ours is in charge"),
    Used(
        "vllm.platforms.interface",
        "Platform",
        "extended: settings and requests are checked",
        (
            "check_and_update_config",
            "fp8_dtype",
            "get_device_capability",
            "register_custom_kv_cache_specs",
            "validate_request",
        ),
    ),
    Used("vllm.platforms.interface", "DeviceCapability", "what a GPU must be able to do"),
    Used(
        "vllm.platforms.cpu",
        "CpuPlatform",
        "extended: the flag is honoured",
        ("get_attn_backend_cls", "import_kernels"),
    ),
    Used(
        "vllm.platforms.cpu",
        "CpuPlatform.get_attn_backend_cls",
        "overridden",
        parameters=("selected_backend", "attn_selector_config", "num_heads"),
    ),
    Used("vllm.platforms.cuda", "CudaPlatform", "extended: one of two backends is taken"),
    Used(
        "vllm.platforms.cuda",
        "CudaPlatformBase.get_attn_backend_cls",
        "overridden",
        parameters=("selected_backend", "attn_selector_config", "num_heads"),
    ),
    Used("vllm.platforms.rocm", "RocmPlatform", "extended"),
    Used(
        "vllm.v1.attention.backends.registry",
        "AttentionBackendEnum",
        "the flag's values, of which ours becomes one",
    ),
    Used(
        "vllm.v1.attention.backends.registry",
        "register_backend",
        "makes the flag's value known",
        parameters=("backend", "class_path"),
    ),
    Used(
        "vllm.v1.kv_cache_spec_registry",
        "KVCacheSpecRegistry.register",
        "which manager serves our spec",
        parameters=("uniform_type_base_spec",),
    ),
    Used(
        "vllm.v1.metrics.loggers",
        "AggregateStatLoggerBase",
        "extended: our families on /metrics",
        ("record", "log_engine_initialized"),
    ),
    Used(
        "vllm.v1.sample.logits_processor",
        "AdapterLogitsProcessor",
        "extended: output that begins with given tokens",
        ("new_req_logits_processor", "is_argmax_invariant", "validate_params"),
    ),
)

CONFIGURATION = (
    Used(
        "vllm.config",
        "VllmConfig",
        "what is to be served, and whether we can",
        (
            "additional_config",
            "attention_config",
            "cache_config",
            "compilation_config",
            "instance_id",
            "kv_transfer_config",
            "model_config",
            "parallel_config",
            "scheduler_config",
            "speculative_config",
        ),
    ),
    Used(
        "vllm.config",
        "CompilationConfig",
        "how many tokens graphs are captured of",
        ("max_cudagraph_capture_size",),
    ),
    Used("vllm.config", "AttentionConfig", "the flag", ("backend", "backend_per_kind")),
    Used(
        "vllm.config",
        "CacheConfig",
        "the pool, and what we refuse",
        (
            "block_size",
            "cache_dtype",
            "kv_cache_dtype_skip_layers",
            "kv_offloading_size",
            "num_gpu_blocks",
            "user_specified_block_size",
        ),
    ),
    Used(
        "vllm.config",
        "ModelConfig",
        "the model's sizes and identity, and kinds of models that we refuse",
        (
            "architecture",
            "dtype",
            "get_head_size",
            "get_num_attention_heads",
            "get_sliding_window",
            "get_total_num_hidden_layers",
            "get_total_num_kv_heads",
            "hf_config",
            "hf_text_config",
            "is_attention_free",
            "is_diffusion",
            "is_encoder_decoder",
            "is_hybrid",
            "is_mm_prefix_lm",
            "is_submodel_config",
            "max_model_len",
            "model",
            "model_arch_config",
            "revision",
            "runner_type",
            "served_model_name",
            "use_mla",
            "uses_alibi",
        ),
    ),
    Used(
        "vllm.config",
        "ParallelConfig",
        "ranks, and what we refuse",
        (
            "data_parallel_index",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
            "tensor_parallel_size",
            "use_ubatching",
        ),
    ),
    Used(
        "vllm.config",
        "SchedulerConfig",
        "our scheduler takes the place of vLLM's; a step has room for the window",
        (
            "async_scheduling",
            "long_prefill_token_threshold",
            "max_num_batched_tokens",
            "max_num_scheduled_tokens",
            "scheduler_cls",
        ),
    ),
    Used(
        "vllm.config",
        "SpeculativeConfig",
        "drafters that we refuse",
        ("method", "num_speculative_tokens"),
    ),
)

SCHEDULING = (
    Used(
        _SCHEDULER,
        "Scheduler",
        "extended: budgets are announced, prompts counted, answers remembered",
        (
            "_free_blocks",
            "_reserve_prefill_lookahead",
            "add_request",
            "kv_cache_manager",
            "make_stats",
            "max_model_len",
            "max_num_scheduled_tokens",
            "requests",
            "running",
            "schedule",
        ),
    ),
    Used(
        _SCHEDULER,
        "Scheduler._reserve_prefill_lookahead",
        "overridden: no chunk ends inside the window",
        parameters=("request", "num_computed_tokens", "num_new_tokens"),
    ),
    Used("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "extended in the same way"),
    Used(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        "which prompts a step completes",
        ("num_scheduled_tokens",),
    ),
    Used(
        "vllm.v1.core.kv_cache_manager",
        "KVCacheManager",
        "the way from the scheduler to our manager",
        ("coordinator",),
    ),
    Used(
        "vllm.v1.core.kv_cache_coordinator",
        "KVCacheCoordinator",
        "the way from the scheduler to our manager",
        ("single_type_managers",),
    ),
    Used(
        _MANAGER,
        "FullAttentionManager",
        "extended: rows hold headers and compressed blocks, prompt blocks are given back",
        (
            "_get_num_evictable_blocks",
            "_record_new_block_ids",
            "_remove_blocks_in_range",
            "block_pool",
            "block_size",
            "kv_cache_group_id",
            "new_block_ids",
            "num_cached_block",
            "req_to_blocks",
            "supports_fine_grained_hash_lookup",
        ),
    ),
    Used(
        _MANAGER,
        "FullAttentionManager.get_num_blocks_to_allocate",
        "overridden: compressed blocks count, and admission looks ahead",
        parameters=("request_id", "num_tokens", "new_computed_blocks", "apply_admission_cap"),
    ),
    Used(
        _MANAGER,
        "FullAttentionManager.allocate_new_blocks",
        "overridden",
        parameters=("request_id", "num_tokens", "num_tokens_main_model"),
    ),
    Used(
        _MANAGER,
        "FullAttentionManager.cache_blocks",
        "overridden: only what comes before the window is hashed",
        parameters=("request", "num_tokens", "retention_interval", "replay_boundaries"),
    ),
    Used(
        _MANAGER,
        "FullAttentionManager.remove_skipped_blocks",
        "overridden: the prompt's full blocks go back once it is processed",
        parameters=("request_id", "processed_computed_tokens", "num_prompt_tokens"),
    ),
    Used(
        "vllm.v1.core.block_pool",
        "BlockPool",
        "takes and hashes blocks",
        ("blocks", "get_new_blocks", "get_num_free_blocks", "num_gpu_blocks"),
    ),
    Used(
        "vllm.v1.core.block_pool",
        "BlockPool.cache_full_blocks",
        "hashes a prompt's blocks",
        parameters=(
            "request",
            "blocks",
            "num_cached_blocks",
            "num_full_blocks",
            "block_size",
            "kv_cache_group_id",
        ),
    ),
    Used(
        "vllm.v1.core.kv_cache_utils",
        "KVCacheBlock",
        "a row's entries; a header's are null blocks with a number",
        ("block_hash", "block_id", "is_null", "ref_cnt"),
    ),
    Used(
        "vllm.v1.request",
        "Request",
        "lengths, hashes and the request's own arguments",
        (
            "_block_hasher",
            "block_hashes",
            "max_tokens",
            "num_computed_tokens",
            "num_output_tokens",
            "num_prompt_tokens",
            "num_tokens",
            "request_id",
            "resumable",
            "sampling_params",
        ),
    ),
    Used("vllm.utils.math_utils", "cdiv", "division that rounds up"),
)

CACHE = (
    Used(
        "vllm.v1.kv_cache_interface",
        "FullAttentionSpec",
        "extended: rows are wider, and a request takes more at its start",
        ("block_size", "page_size_bytes", "max_memory_usage_bytes", "num_kv_heads", "head_size"),
    ),
    Used(
        "vllm.v1.kv_cache_interface",
        "FullAttentionSpec.max_num_blocks_per_req",
        "overridden: the width of a block-table row",
        parameters=("vllm_config", "max_len"),
    ),
    Used("vllm.v1.kv_cache_interface", "AttentionSpec", "what a layer asks for"),
    Used("vllm.v1.kv_cache_interface", "replace_as", "our spec with a layer's values"),
    Used(
        "vllm.v1.kv_cache_interface",
        "KVCacheLayout",
        "blocks outermost, so that all head blocks are one array",
        ("BLHNC",),
    ),
)

ATTENTION = (
    Used(
        _CPU_BACKEND,
        "CPUAttentionBackend",
        "extended",
        (
            "customize_spec",
            "forward_includes_kv_cache_update",
            "get_builder_cls",
            "get_impl_cls",
            "get_name",
            "get_supported_kernel_block_sizes",
            "supported_kv_cache_dtypes",
            "supported_kv_cache_layouts",
            "supports_attn_type",
            "supports_device_cpu_query_lens_mismatch",
            "supports_non_causal",
        ),
    ),
    Used(
        _CPU_BACKEND,
        "CPUAttentionBackendImpl",
        "extended: one layer's attention",
        (
            "alibi_slopes",
            "head_size",
            "kv_sharing_target_layer_name",
            "logits_soft_cap",
            "num_queries_per_kv",
            "scale",
            "sinks",
            "sliding_window",
        ),
    ),
    Used(
        _CPU_BACKEND,
        "CPUAttentionBackendImpl.forward",
        "overridden",
        parameters=_FORWARD,
    ),
    Used(
        _BACKEND,
        "AttentionBackend",
        "extended: the backend on kernels of our own",
        (
            "customize_spec",
            "forward_includes_kv_cache_update",
            "get_builder_cls",
            "get_impl_cls",
            "get_name",
            "get_supported_kernel_block_sizes",
            "supported_dtypes",
            "supported_kv_cache_dtypes",
            "supported_kv_cache_layouts",
            "supports_attn_type",
            "supports_combination",
            "supports_compute_capability",
            "supports_head_size",
            "supports_kv_connector",
            "validate_configuration",
        ),
    ),
    Used(
        "vllm.v1.attention.backends.fa_utils",
        "flash_attn_varlen_func",
        "reads prompts",
        parameters=(
            *("q", "k", "v", "out", "cu_seqlens_q", "max_seqlen_q", "seqused_k", "max_seqlen_k"),
            *("softmax_scale", "causal", "softcap", "block_table", "fa_version"),
        ),
    ),
    Used(
        "vllm.v1.attention.backends.fa_utils",
        "get_flash_attn_version",
        "which of its versions there is, or none",
        parameters=("head_size",),
    ),
    Used(
        "vllm.utils.torch_utils",
        "canonicalize_singleton_dim_strides",
        "what FlashAttention 3 wants of a cache with one KV head",
    ),
    Used("vllm.v1.kv_cache_interface", "is_quantized_kv_cache", "whether entries are fp8"),
    Used(
        _BACKEND,
        "AttentionCGSupport",
        "which steps a CUDA graph may hold",
        ("UNIFORM_SINGLE_TOKEN_DECODE",),
    ),
    Used(_BACKEND, "AttentionImpl", "extended: one layer's attention on kernels of our own"),
    Used(
        _BACKEND,
        "AttentionImpl.forward",
        "overridden",
        parameters=_FORWARD,
    ),
    Used(_CPU_BACKEND, "_get_attn_isa", "the instruction set that packs the cache"),
    Used(_BACKEND, "AttentionType", "decoders only", ("DECODER",)),
    Used(_BACKEND, "MultipleOf", "block sizes of the kernels"),
    Used(_BACKEND, "AttentionLayer", "the type of a layer in vLLM's signatures"),
    Used(
        "vllm.model_executor.layers.attention.attention",
        "Attention",
        "a layer, whose name says which one it is",
        ("layer_name", "impl", "kv_cache", "num_heads", "num_kv_heads", "head_size"),
    ),
    Used(
        "vllm.model_executor.warmup.jit_warmup",
        "VllmJitKernel",
        "extended: a step that compiles kernels is one of those to compile",
        ("get_warmup_keys", "compile", "register_warmup"),
    ),
    Used(
        _BACKEND,
        "AttentionMetadataBuilder.build",
        "overridden: a step is planned once for all layers",
        parameters=("common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    Used(
        _BACKEND,
        "CommonAttentionMetadata",
        "a step's rows, tokens and lengths",
        (
            *("block_table_tensor", "query_start_loc", "query_start_loc_cpu", "seq_lens"),
            *("is_prefilling", "seq_lens_cpu_upper_bound", "max_seq_len", "max_query_len"),
            *("num_actual_tokens", "num_reqs"),
        ),
    ),
    Used(
        _KERNELS,
        "cpu_attn_get_scheduler_metadata",
        "the kernels' work schedule",
        parameters=(
            "num_reqs",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "seq_lens",
            "dtype",
            "query_start_loc",
            "causal",
            "sliding_window_size",
            "isa",
            "enable_kv_split",
        ),
    ),
    Used(
        _KERNELS,
        "cpu_attention_with_kv_cache",
        "attention over blocks, and over head blocks",
        parameters=(
            "query",
            "key_cache",
            "value_cache",
            "output",
            "query_start_loc",
            "seq_lens",
            "scale",
            "causal",
            "alibi_slopes",
            "sliding_window",
            "block_table",
            "softcap",
            "scheduler_metadata",
            "s_aux",
        ),
    ),
    Used(
        _KERNELS,
        "cpu_attn_reshape_and_cache",
        "writes keys and values, also to head blocks",
        parameters=("key", "value", "key_cache", "value_cache", "slot_mapping", "isa"),
    ),
    Used("vllm.envs", "VLLM_CPU_ATTN_SPLIT_KV", "the kernels' schedule, as stock makes it"),
    Used(
        "vllm.model_executor.models.utils",
        "extract_layer_index",
        "which layer's scores belong to a name",
    ),
    Used("vllm.distributed", "get_tensor_model_parallel_rank", "which KV heads a worker holds"),
    Used("vllm.distributed", "get_tensor_model_parallel_world_size", "the same"),
    Used("vllm.distributed", "get_pp_group", "which worker's numbers /metrics shows"),
)

SERVING = (
    Used("vllm", "__version__", "told by our routes"),
    Used("vllm.logger", "init_logger", "our lines in vLLM's log"),
    Used(
        "vllm.engine.protocol",
        "EngineClient",
        "what an API server serves",
        ("vllm_config", "renderer"),
    ),
    Used(
        "vllm.renderers.base",
        "BaseRenderer",
        "a text becomes the tokens that /v1/completions would make of it",
        ("default_cmpl_tok_params", "tokenize_prompt_async"),
    ),
    Used("vllm.exceptions", "VLLMValidationError", "a client's mistake: 400"),
    Used("vllm.pooling_params", "PoolingParams", "requests without sampling parameters"),
    Used(
        "vllm.sampling_params",
        "SamplingParams",
        "a request's own arguments, checked as soon as they are read",
        ("_verify_extra_args", "extra_args", "max_tokens"),
    ),
    Used("vllm.v1.metrics.prometheus", "get_prometheus_registry", "what /metrics shows"),
    Used(
        "vllm.v1.metrics.stats",
        "SchedulerStats",
        "our numbers ride on vLLM's",
        ("num_kv_fetch_reqs_by_stage",),
    ),
)

VLLM_NAMES = (*ENTRY_POINTS, *CONFIGURATION, *SCHEDULING, *CACHE, *ATTENTION, *SERVING)
