# SPDX-License-Identifier: Apache-2.0
"""The arguments by which a request replaces some of the server's settings.

In the body of an HTTP request: `"vllm_xargs": {"headkv_budget": 512, "headkv_policy": "uniform"}`.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from headkv_vllm.config import Settings
from headkv_vllm.errors import RequestError, one_of, shown

PREFIX = "headkv_"
"""The names of all our arguments begin with this. Other arguments are left to vLLM."""

FORCED_TOKENS = "headkv_forced_tokens"
"""The token ids that the output begins with. `engine.forced_tokens` reads this argument."""

BUDGET, KEEP_RATIO, POLICY = "headkv_budget", "headkv_keep_ratio", "headkv_policy"
COMPRESS_EVERY = "headkv_compress_every"


def request_settings(settings: Settings, arguments: Mapping[str, object] | None) -> Settings:
    """The server's `settings`, with the values that a request's `arguments` replace.

    Raises RequestError with one line that names the argument, its value and what is allowed.
    """
    given = {name: value for name, value in (arguments or {}).items() if _is_ours(name)}
    if not given:
        return settings
    for name in given:
        if name not in _CHANGES:
            raise RequestError(_unknown(name), name, given[name])
    if BUDGET in given and KEEP_RATIO in given:
        text = f"{BUDGET}={shown(given[BUDGET])} and {KEEP_RATIO}={shown(given[KEEP_RATIO])}"
        raise RequestError(
            f"{text} exclude each other: give one of them", KEEP_RATIO, given[KEEP_RATIO]
        )
    changes: dict[str, Any] = {}
    for name, value in given.items():
        changes |= _CHANGES[name](settings, value)
    return settings.model_copy(update=changes)


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX) and name != FORCED_TOKENS


def _unknown(name: str) -> str:
    close = get_close_matches(name, _CHANGES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown argument {shown(name)}: {hint}allowed are {', '.join(_CHANGES)}"


def _budget(settings: Settings, value: object) -> dict[str, object]:
    # isinstance would accept True, because bool is a subclass of int.
    if type(value) is not int or not settings.allows_budget(value):
        raise _not_allowed(BUDGET, value, settings.allowed_budgets)
    return {"budget": value, "keep_ratio": None}


def _keep_ratio(settings: Settings, value: object) -> dict[str, object]:
    if (type(value) is not int and type(value) is not float) or not 0 < value <= 1:
        raise _not_allowed(KEEP_RATIO, value, f"{Settings.model_fields['keep_ratio'].description}")
    return {"keep_ratio": float(value), "budget": None}


def _policy(settings: Settings, value: object) -> dict[str, object]:
    if value not in settings.allowed_policies:
        allowed = one_of(settings.allowed_policies)
        reason = "" if settings.uses_scores else ", because this server has loaded no head scores"
        raise _not_allowed(POLICY, value, allowed + reason)
    return {"policy": value}


def _compress_every(settings: Settings, value: object) -> dict[str, object]:
    if type(value) is not int or not settings.allows_compress_every(value):
        allowed = f"0 (off) or an integer of at least {settings.window} (tokens)"
        raise _not_allowed(COMPRESS_EVERY, value, allowed)
    return {"compress_every": value}


def _not_allowed(name: str, value: object, allowed: str) -> RequestError:
    return RequestError(f"{name}={shown(value)} is not allowed: it must be {allowed}", name, value)


_CHANGES: dict[str, Callable[[Settings, object], dict[str, object]]] = {
    BUDGET: _budget,
    KEEP_RATIO: _keep_ratio,
    POLICY: _policy,
    COMPRESS_EVERY: _compress_every,
}
"""By argument: a function of (settings, value) that returns the settings to replace.

It raises RequestError when the value is not allowed.
"""
