# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM would serve a model with our backend, found out without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from headkv_vllm.budgets.plan import Plan
from headkv_vllm.engine.configured_model import ConfiguredModel, configured_model
from headkv_vllm.engine.platforms.platform import is_selected
from headkv_vllm.engine.settings import model_dtype
from headkv_vllm.errors import HeadKVError, UnsupportedError


@dataclass(frozen=True)
class ModelCheck:
    """What a server would do with a model.

    platform: vLLM's name of the device. num_layers: of the model.
    """

    model: ConfiguredModel
    architecture: str
    platform: str
    dtype: str
    num_layers: int

    @property
    def num_full_layers(self) -> int:
        """The layers with full attention, which are compressed."""
        return len(self.model.scores.values)

    @property
    def plan(self) -> Plan:
        """For a prompt of `max_model_len` tokens."""
        return self.model.plan(self.model.settings, self.model.max_model_len)


def check_model(arguments: Sequence[str]) -> ModelCheck:
    """Configure vLLM as `vllm serve` would with `arguments`, which begin with the model.

    Raises HeadKVError, one line, if this plugin or vLLM refuses the model or an argument.
    """
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
    return ModelCheck(
        model=configured_model(vllm_config),
        architecture=vllm_config.model_config.architecture,
        platform=current_platform.device_name,
        dtype=str(model_dtype(vllm_config)).removeprefix("torch."),
        num_layers=vllm_config.model_config.get_total_num_hidden_layers(),
    )
