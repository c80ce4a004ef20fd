"""A receipt: what a conversion changed, measured, and whether that is what it promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixwell.core.errors import MixwellError


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One conversion, weighed before and after on the same tokens."""

    method: str  # convert.upcycle
    max_logit_error: float  # largest absolute difference of a logit
    kl_nats: float  # mean KL(before || after) per token
    loss_before_nats: float  # mean cross-entropy per token
    loss_after_nats: float
    parameters_before: int
    parameters_after: int
    size_before_bytes: int
    size_after_bytes: int
    load_before: Mapping[str, list[float]] = field(default_factory=dict)  # layer -> share of tokens by expert
    load_after: Mapping[str, list[float]] = field(default_factory=dict)
    promises: Mapping[str, float] = field(default_factory=dict)  # field of this receipt -> largest value allowed

    def broken(self) -> list[str]:
        """The promises that were not kept, in words. A value that is not a number keeps no promise."""
        lines = []
        for name, limit in self.promises.items():
            value = float(getattr(self, name))
            if math.isnan(value) or value > limit:
                lines.append(f"{name} is {value:.3g}, promised at most {limit:.3g}")
        return lines

    def check(self) -> Receipt:
        """Return self, or raise `MixwellError` that names each broken promise."""
        if broken := self.broken():
            raise MixwellError(f"{self.method} broke its promise: {'; '.join(broken)}. The result was not kept.")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = dict(vars(self))
        for name, value in plain.items():
            if isinstance(value, Mapping):
                plain[name] = dict(value)
        plain["kept"] = not self.broken()
        return plain
