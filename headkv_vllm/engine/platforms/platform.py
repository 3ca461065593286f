# SPDX-License-Identifier: Apache-2.0
"""What our platforms do if `--attention-backend headkv` is given. Otherwise they change nothing."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override
from vllm.platforms.interface import Platform

from headkv_vllm.config import Settings
from headkv_vllm.engine.compatibility import Limits, check_supported, why_not_again
from headkv_vllm.engine.logger import logger
from headkv_vllm.engine.names import ASYNC_SCHEDULER_PATH, BACKEND_NAME, SCHEDULER_PATH
from headkv_vllm.errors import HeadKVError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class HeadKVPlatform(Platform):
    """A mixin for vLLM's platforms that adds our backend, KV-cache spec and scheduler.

    headkv_backend: the path of the backend class.
    headkv_block_size: the default block size.
    headkv_limits: the limits of the backend.
    headkv_caution: a warning for users of this platform, or None.
    settings: the settings of the last engine that was configured in this process, or None if that
        engine has another backend.
    why_not_again: why that engine cannot compress requests while they generate, or None.
    """

    headkv_backend: ClassVar[str]
    headkv_block_size: ClassVar[int]
    headkv_limits: ClassVar[Limits] = Limits()
    headkv_caution: ClassVar[str | None] = None
    settings: ClassVar[Settings | None] = None
    why_not_again: ClassVar[str | None] = None

    @classmethod
    @override
    def register_custom_kv_cache_specs(cls, vllm_config: "VllmConfig") -> None:
        """Register the manager of our KV-cache spec, after vLLM's own managers."""
        from vllm.v1.kv_cache_interface import FullAttentionSpec
        from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

        from headkv_vllm.engine.kv_cache import HeadKVManager, HeadKVSpec

        super().register_custom_kv_cache_specs(vllm_config)
        KVCacheSpecRegistry.register(
            HeadKVSpec, HeadKVManager, uniform_type_base_spec=FullAttentionSpec
        )

    @classmethod
    @override
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Check the settings and the model, and configure vLLM for our backend.

        Raises HeadKVError, one line that says what is not supported.
        """
        super().check_and_update_config(vllm_config)
        if not is_selected(vllm_config):
            # vLLM also makes configurations without a model, which do not serve.
            if vllm_config.model_config is not None:
                cls.settings = None
            return
        try:
            cls.settings = cls._prepare(vllm_config) or cls.settings
        except HeadKVError:
            _report_in_one_line()
            raise

    @classmethod
    @override
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Raises VLLMValidationError, HTTP 400 for the client, if our arguments are not allowed."""
        from headkv_vllm.engine.request_checks import check_request

        super().validate_request(processed_inputs, params)
        check_request(cls.settings, params, cls.why_not_again)

    @classmethod
    def _prepare(cls, vllm_config: "VllmConfig") -> Settings | None:
        """The settings to serve with; None for the configuration of a submodel."""
        from headkv_vllm.engine.request_checks import check_early, check_request
        from headkv_vllm.engine.settings import read_settings, resolve_scores

        model_config, cache_config = vllm_config.model_config, vllm_config.cache_config
        if not cache_config.user_specified_block_size:
            cache_config.block_size = cls.headkv_block_size
        # vLLM checks a copy of the configuration for each submodel of a model. The full model was
        # checked before, and a submodel alone may look like an unsupported model.
        if model_config is None or model_config.is_submodel_config:
            return None
        settings = read_settings(vllm_config)
        check_supported(vllm_config, settings, cls.headkv_limits)
        if cls.headkv_caution:
            logger.warning("HeadKV: %s", cls.headkv_caution)
        resolve_scores(vllm_config, settings)
        scheduler_config = vllm_config.scheduler_config
        is_async = scheduler_config.async_scheduling
        scheduler_config.scheduler_cls = ASYNC_SCHEDULER_PATH if is_async else SCHEDULER_PATH
        cls.why_not_again = why_not_again(vllm_config, settings, cls.headkv_limits)
        check_early(lambda params: check_request(cls.settings, params, cls.why_not_again))
        return settings


def is_selected(vllm_config: "VllmConfig") -> bool:
    """Whether the user selected our backend, for all or some layers."""
    attention_config = vllm_config.attention_config
    chosen = (attention_config.backend, *attention_config.backend_per_kind.values())
    return any(is_ours(backend) for backend in chosen)


def is_ours(backend: Any) -> bool:
    """Whether `backend`, a value of vLLM's flag or None, is our backend."""
    return getattr(backend, "name", None) == BACKEND_NAME


def _report_in_one_line() -> None:
    """Print a HeadKVError that ends the process as one line without a traceback.

    The hook is installed when such an error is raised. A program that catches it is not affected.
    """
    show_others = sys.excepthook

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, HeadKVError):
            print(f"headkv: error: {error}", file=sys.stderr)
        else:
            show_others(kind, error, traceback)

    sys.excepthook = show
