"""Rotary frequencies, as trained or stretched to longer inputs.

Legend: B rows, T positions, P the width that turns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Scaling = Mapping[str, Any]
Key = tuple[tuple[str, Any], ...] | None  # a scaling that a cache can hold

_ORIGINAL = "original_max_position_embeddings"
NEEDED = {  # options by type; those of `OPTIONAL` may be there as well
    "linear": ("factor",),
    "dynamic": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL),
    "longrope": ("short_factor", "long_factor", "factor", _ORIGINAL),
}
OPTIONAL = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
}
_BY_LENGTH = ("dynamic", "longrope")  # types whose frequencies depend on the longest position


def check_rope_scaling(scaling: Scaling | None) -> None:
    """Refuse a rotary scaling that is none of the known types with their options."""
    if scaling is None:
        return
    kind = scaling.get("type")
    if kind not in NEEDED:
        raise ValueError(f"rope_scaling type {kind!r} is not supported; expected none, {', '.join(NEEDED)}")
    given, needed = set(scaling) - {"type"}, set(NEEDED[kind])
    extra = given - needed - set(OPTIONAL.get(kind, ()))
    if extra or needed - given:
        got = ", ".join(sorted(given)) or "nothing"
        raise ValueError(f"rope_scaling {kind} needs {', '.join(NEEDED[kind])}; got {got}")
    for key in sorted(given):
        _check_option(key, scaling[key])


def _check_option(key: str, value: Any) -> None:
    if key == "truncate" or (key == "attention_factor" and value is None):
        return
    several = isinstance(value, Sequence) and key in ("short_factor", "long_factor")
    for number in value if several else (value,):
        plain = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not plain or not number > 0:
            raise ValueError(f"rope_scaling {key} is {value!r}; expected a number above 0")


def scaling_key(scaling: Scaling | None) -> Key:
    """`scaling` as a value that can be hashed."""
    if not scaling:
        return None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in scaling.items()}
    return tuple(sorted(options.items()))


def reach(positions_BT: Tensor, scaling: Scaling | None) -> int:
    """The length that the frequencies are made for: 0 where they do not depend on it."""
    if not scaling or scaling["type"] not in _BY_LENGTH or not positions_BT.numel():
        return 0
    longest = int(positions_BT.max()) + 1
    return max(longest, int(scaling[_ORIGINAL]))


@functools.lru_cache(maxsize=64)
def frequencies(width: int, theta: float, scaling: Key, length: int, device: torch.device) -> Tensor:
    """Radians per position of each pair, float32 [P / 2], for inputs of `length` positions (see `reach`)."""
    options = dict(scaling or ())
    make = _STRETCHES.get(options.get("type", ""))
    if make is None:
        return _plain(width, theta, device)
    return make(width, theta, options, length, device)


def _plain(width: int, theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).float() / width
    return 1.0 / theta**exponents


def _linear(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    return _plain(width, theta, device) / options["factor"]


def _dynamic(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    """A base that grows with the input beyond the length of training (NTK-aware interpolation)."""
    factor = options["factor"]
    over = max(length / options[_ORIGINAL], 1.0)
    growth = factor * over - (factor - 1)
    power = width / (width - 2)
    return _plain(width, theta * growth**power, device)


def _llama3(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    plain = _plain(width, theta, device)
    turns = options[_ORIGINAL] * plain / (2 * math.pi)
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / options["factor"] + blend * plain


def _yarn(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    """As `_llama3` with a ramp over the pairs by number (Peng et al. 2023, 2309.00071, eq. 22-23)."""
    def pair_that_turns(times: float) -> float:
        radians = times * 2 * math.pi
        waves = options[_ORIGINAL] / radians
        return width * math.log(waves) / (2 * math.log(theta))

    fast, slow = options.get("beta_fast"), options.get("beta_slow")
    low = pair_that_turns(fast or 32)
    high = pair_that_turns(slow or 1)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    gap = high - low or 0.001
    pairs = torch.arange(width // 2, dtype=torch.float32, device=device)
    stretched = ((pairs - low) / gap).clamp(0, 1)
    plain = _plain(width, theta, device)
    return plain / options["factor"] * stretched + plain * (1 - stretched)


def _longrope(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    """A factor for each pair, another one beyond the length of training (Ding et al. 2024, 2402.13753)."""
    name = "long_factor" if length > options[_ORIGINAL] else "short_factor"
    factors = torch.tensor(options[name], dtype=torch.float32, device=device)
    return _plain(width, theta, device) / factors


_STRETCHES = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def attention_factor(scaling: Scaling | None) -> float:
    """The factor on turned queries and on turned keys that goes with a scaling; 1 for most."""
    if not scaling or scaling["type"] not in ("yarn", "longrope"):
        return 1.0
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    factor = scaling["factor"]
    if scaling["type"] == "longrope":
        grown = 1 + math.log(factor) / math.log(scaling[_ORIGINAL])
        return math.sqrt(grown) if factor > 1 else 1.0
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if over and under:
        return yarn_scale(factor, over) / yarn_scale(factor, under)
    return yarn_scale(factor)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """How much sharper attention is made for inputs `factor` times as long: 0.1 weight ln(factor) + 1, at least 1."""
    if factor <= 1:
        return 1.0
    return 0.1 * weight * math.log(factor) + 1.0
