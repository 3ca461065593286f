# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM would serve a model with our backend, found out without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from headkv_vllm.budgets.plan import Plan, make_plan
from headkv_vllm.errors import HeadKVError, UnsupportedError
from headkv_vllm.head_scores.scores import ServedScores


@dataclass(frozen=True)
class ModelCheck:
    """What a server would do with a model.

    platform: vLLM's name of the device. num_layers: of the model. num_full_layers: those that are
    compressed. plan: for a prompt of `max_model_len` tokens.
    """

    architecture: str
    platform: str
    dtype: str
    num_layers: int
    num_full_layers: int
    scores: ServedScores
    needs_scores: bool
    max_model_len: int
    plan: Plan


def check_model(arguments: Sequence[str]) -> ModelCheck:
    """Configure vLLM as `vllm serve` would with `arguments`, which begin with the model.

    Raises HeadKVError, one line, if this plugin or vLLM refuses the model or an argument.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from headkv_vllm.engine.platforms.platform import is_selected
    from headkv_vllm.engine.settings import (
        full_layers,
        model_dtype,
        read_scores,
        read_settings,
        served_scores,
    )
    from headkv_vllm.head_scores.scores import needs_file

    load_general_plugins()  # type: ignore[no-untyped-call]
    parser = FlexibleArgumentParser(usage="headkv check MODEL [options]")  # type: ignore[no-untyped-call]
    options = make_arg_parser(parser).parse_args(list(arguments))
    options.model = options.model_tag or options.model
    try:
        engine_args = AsyncEngineArgs.from_cli_args(options)
        vllm_config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except HeadKVError:
        raise
    except Exception as error:
        # Any class: vLLM raises ValueError, pydantic's errors, OSError and others.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:3]) or type(error).__name__
        raise UnsupportedError(f"vLLM refuses: {reason}") from None
    if not is_selected(vllm_config):
        raise UnsupportedError("another attention backend is given, so nothing is compressed")
    model_config, cache_config = vllm_config.model_config, vllm_config.cache_config
    settings, scores = read_settings(vllm_config), served_scores(vllm_config)
    num_heads = model_config.model_arch_config.total_num_attention_heads
    return ModelCheck(
        architecture=model_config.architecture,
        platform=current_platform.device_name,
        dtype=str(model_dtype(vllm_config)).removeprefix("torch."),
        num_layers=model_config.get_total_num_hidden_layers(),
        num_full_layers=len(full_layers(model_config)),
        scores=scores,
        needs_scores=needs_file(settings),
        max_model_len=model_config.max_model_len,
        plan=make_plan(
            read_scores(vllm_config),
            settings,
            model_config.max_model_len,
            cache_config.block_size,
            model_config.get_head_size(),
            model_dtype(vllm_config).itemsize,
            vllm_config.parallel_config.tensor_parallel_size,
            num_heads // model_config.get_total_num_kv_heads(),
        ),
    )
