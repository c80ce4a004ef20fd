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
    given = set(scaling) - {"type"}
    needed = set(NEEDED[kind])
    known = needed.union(OPTIONAL.get(kind, ()))
    if not needed <= given <= known:
        got = ", ".join(sorted(given)) or "nothing"
        wanted = ", ".join(NEEDED[kind])
        raise ValueError(f"rope_scaling {kind} needs {wanted}; got {got}")
    for key in sorted(given):
        _check_option(key, scaling[key])


def _check_option(key: str, value: Any) -> None:
    if key == "truncate":
        return
    if key == "attention_factor" and value is None:
        return
    listed = key in ("short_factor", "long_factor")
    several = listed and isinstance(value, Sequence)
    numbers = value if several else (value,)
    if not all(map(_is_positive, numbers)):
        raise ValueError(f"rope_scaling {key} is {value!r}; expected a number above 0")


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float))
    flag = isinstance(value, bool)
    return number and not flag and value > 0


def scaling_key(scaling: Scaling | None) -> Key:
    """`scaling` as a value that can be hashed."""
    if not scaling:
        return None
    options = dict(scaling)
    for name, value in options.items():
        if isinstance(value, list):
            options[name] = tuple(value)
    return tuple(sorted(options.items()))


def reach(positions_BT: Tensor, scaling: Scaling | None) -> int:
    """The length that the frequencies are made for: 0 where they do not depend on it."""
    if not scaling or scaling["type"] not in _BY_LENGTH:
        return 0
    original = int(scaling[_ORIGINAL])
    if not positions_BT.numel():
        return original
    last = int(positions_BT.max())
    return max(last + 1, original)


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
    over = length / options[_ORIGINAL]
    growth = factor * over - (factor - 1)
    power = width / (width - 2)
    base = theta * growth**power
    return _plain(width, base, device)


def _llama3(width: int, theta: float, options: Scaling, length: int, device: torch.device) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    plain = _plain(width, theta, device)
    turns = options[_ORIGINAL] * plain / (2 * math.pi)
    low = options["low_freq_factor"]
    high = options["high_freq_factor"]
    share = (turns - low) / (high - low)
    blend = share.clamp(0, 1)
    stretched = (1 - blend) * plain / options["factor"]
    kept = blend * plain
    return stretched + kept


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
    ramp = (pairs - low) / gap
    share = ramp.clamp(0, 1)
    plain = _plain(width, theta, device)
    longer = plain / options["factor"]
    kept = plain * (1 - share)
    return longer * share + kept


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
        growth = 1 + math.log(factor) / math.log(scaling[_ORIGINAL])
        return math.sqrt(growth) if factor > 1 else 1.0
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if over and under:
        return yarn_scale(factor, over) / yarn_scale(factor, under)
    return yarn_scale(factor)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """How much sharper attention is made for inputs `factor` times as long: 0.1 weight ln(factor) + 1, at least 1."""
    if factor <= 1:
        return 1.0
    return 0.1 * weight * math.log(factor) + 1.0
