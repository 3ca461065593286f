# SPDX-License-Identifier: Apache-2.0
"""The settings, as given in `vllm serve --additional-config '{"headkv": {...}}'`."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headkv_vllm.errors import SettingsError, one_of, shown

DEFAULT_BUDGET = 1024

ScoredPolicy = Literal["headkv", "headkv_ada", "random"]
UnscoredPolicy = Literal["uniform", "pyramidkv", "streaming", "adakv"]
PolicyName = Literal[ScoredPolicy, UnscoredPolicy]
"""The allowed values of `Settings.policy`. A scored policy allocates budgets by head scores."""


class Settings(BaseModel):
    """How much of a prompt is kept, and which heads keep it. Token counts are per KV head.

    Each field's description says which values are allowed, and error messages quote it. `budget` is
    `DEFAULT_BUDGET` when neither `budget` nor `keep_ratio` is given, and None when `keep_ratio` is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    budget: int | None = Field(
        default=None, ge=0, description="0 (off) or an integer of at least window + 1 (tokens)"
    )
    keep_ratio: float | None = Field(
        default=None, gt=0, le=1, description="a number above 0 and up to 1 (part of the prompt)"
    )
    scores: str = Field(
        default="auto",
        min_length=1,
        description="'auto', 'uniform' or the path of a score file, or a bundled one's name",
    )
    beta: float = Field(default=1.2, gt=1, description="a finite number above 1")
    window: int = Field(default=8, ge=1, description="an integer of at least 1 (tokens)")
    kernel_size: int = Field(default=15, ge=1, description="an odd integer of at least 1 (tokens)")
    pooling: Literal["max", "avg"] = Field(default="avg", description="'max' or 'avg'")
    gqa_fold: Literal["mean", "max", "sum"] = Field(
        default="mean", description="'mean', 'max' or 'sum'"
    )
    min_blocks: int = Field(default=1, ge=1, description="an integer of at least 1 (head blocks)")
    policy: PolicyName = Field(default="headkv", description=one_of(get_args(PolicyName)))
    query_reduction: Literal["mean", "max"] = Field(default="mean", description="'mean' or 'max'")
    value_norm: bool = Field(default=False, description="true or false")
    sink: int = Field(default=4, ge=0, description="an integer of at least 0 (tokens)")
    min_budget: int | None = Field(
        default=None, ge=1, description="an integer of at least 1 (tokens)"
    )
    max_budget: int | None = Field(
        default=None, ge=1, description="an integer of at least window + 1 (tokens)"
    )
    compress_every: int = Field(
        default=0, ge=0, description="0 (off) or an integer of at least window (tokens)"
    )
    compress_prefill: bool = Field(default=False, description="true or false")
    check_integrity: bool = Field(default=False, description="true or false")

    @property
    def uses_scores(self) -> bool:
        """Whether the policy allocates budgets by head scores."""
        return self.policy in get_args(ScoredPolicy)

    @property
    def allowed_policies(self) -> tuple[PolicyName, ...]:
        """The policies that a request may ask for.

        The server loads head scores only when its own policy needs them. Without scores, requests
        can use unscored policies only.
        """
        return get_args(PolicyName if self.uses_scores else UnscoredPolicy)

    @property
    def min_allowed_budget(self) -> int:
        """The smallest budget above 0 that a request may ask for, in tokens."""
        return max(self.window + 1, self.min_budget or 0)

    @property
    def allowed_budgets(self) -> str:
        """The budgets that a request may ask for, as text for an error message."""
        if self.max_budget is None:
            return f"0 (off) or an integer of at least {self.min_allowed_budget} (tokens)"
        return f"an integer from {self.min_allowed_budget} to {self.max_budget} (tokens)"

    def allows_budget(self, budget: int) -> bool:
        """Whether a request may ask for `budget`.

        0 turns compression off, so the request keeps its whole prompt. `max_budget` forbids that.
        """
        if self.max_budget is None:
            return budget == 0 or budget >= self.min_allowed_budget
        return self.min_allowed_budget <= budget <= self.max_budget

    def allows_compress_every(self, num_tokens: int) -> bool:
        """Whether a request may be compressed again after each `num_tokens` tokens."""
        return num_tokens == 0 or num_tokens >= self.window

    def clip_budget(self, num_tokens: int) -> int:
        """`num_tokens`, raised to `min_budget` or lowered to `max_budget` if needed."""
        max_budget = num_tokens if self.max_budget is None else self.max_budget
        return max(self.min_budget or 0, min(num_tokens, max_budget))

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> Self:
        """The settings in `mapping`, whose keys are the names of the fields.

        Raises SettingsError with one line that names the key, its value and what is allowed.
        """
        if not isinstance(mapping, Mapping):
            raise SettingsError(f"headkv settings must be a mapping, not {shown(mapping)}")
        for key in mapping:
            if key not in cls.model_fields:
                raise SettingsError(_unknown(key, list(cls.model_fields)))
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _default_budget(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = data.get("budget") is not None or data.get("keep_ratio") is not None
        return data if given else {**data, "budget": DEFAULT_BUDGET}

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        low, high = self.min_budget, self.max_budget
        if high is not None and high <= self.window:
            raise ValueError(_not_allowed("max_budget", high) + f", and window is {self.window}")
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"headkv settings min_budget={low} and max_budget={high} exclude each other: "
                "min_budget must not be above max_budget"
            )
        return self

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.budget is not None and self.keep_ratio is not None:
            raise ValueError(
                f"headkv settings budget={self.budget} and keep_ratio={self.keep_ratio} exclude "
                "each other: give one of them"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(_not_allowed("kernel_size", self.kernel_size))
        if self.budget and self.budget <= self.window:
            raise ValueError(_not_allowed("budget", self.budget) + f", and window is {self.window}")
        if not self.allows_compress_every(self.compress_every):
            text = _not_allowed("compress_every", self.compress_every)
            raise ValueError(text + f", and window is {self.window}")
        if self.compress_prefill and not self.compress_every:
            raise ValueError(
                "headkv setting compress_prefill=True is not allowed with compress_every=0: set "
                "compress_every to the number of tokens between two compressions"
            )
        if self.budget is not None and not self.allows_budget(self.budget):
            raise ValueError(
                f"headkv setting budget={self.budget} is not allowed with min_budget="
                f"{self.min_budget} and max_budget={self.max_budget}: it must be "
                f"{self.allowed_budgets}"
            )
        return self


def _unknown(key: object, known: list[str]) -> str:
    close = get_close_matches(str(key), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown headkv setting {shown(key)}: {hint}allowed are {', '.join(known)}"


def _not_allowed(key: str, value: object) -> str:
    allowed = Settings.model_fields[key].description
    return f"headkv setting {key}={shown(value)} is not allowed: it must be {allowed}"


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["loc"]:
        return _not_allowed(str(first["loc"][0]), first["input"])
    return str(first["ctx"]["error"])
