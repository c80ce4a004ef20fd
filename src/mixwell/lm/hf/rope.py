"""Rotary positions in config.json, in the spellings of several years, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixwell.core.errors import MixwellError
from mixwell.kernels.rope import NEEDED
from mixwell.lm.hf.forms import Family
from mixwell.lm.hf.layers import FULL, SLIDING

Keys = Mapping[str, Any]
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "rotary_pct",
                       "rotary_emb_base", "partial_rotary_factor", "original_max_position_embeddings"})
_ORIGINAL, _PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"


class Rope(NamedTuple):
    """Base of the wavelengths, how they are stretched, and the share of a head that turns."""

    theta: float
    scaling: dict[str, Any] | None
    share: float


def read_rope(full: Keys, given: Keys, family: Family, where: str) -> Rope:
    """The rotary positions of the model, or of its full layers where sliding ones have their own.

    `full` holds the family's defaults too; what `given` says outranks them.
    """
    parameters = dict(given.get("rope_parameters") or {})
    if FULL in parameters or SLIDING in parameters:
        parameters = dict(parameters.get(FULL) or {})
    old = given.get("rope_scaling")
    default = {} if parameters or "rope_scaling" in given else full.get("rope_scaling") or {}
    return _rope(full, dict(old or parameters or default), parameters, family, where)


def read_sliding_rope(full: Keys, given: Keys, family: Family, where: str) -> Rope:
    """The rotary positions of the sliding layers, where they have their own."""
    parameters = dict((given.get("rope_parameters") or {}).get(SLIDING) or {})
    parameters.setdefault("rope_theta", full["rope_local_base_freq"])
    return _rope(full, dict(parameters), parameters, family, where)


def _rope(full: Keys, options: dict[str, Any], parameters: Keys, family: Family, where: str) -> Rope:
    plain_theta = full.get(family.theta_key) or full["rope_theta"]
    theta = options.pop("rope_theta", parameters.get("rope_theta", plain_theta))
    plain_share = full.get(family.partial_key or _PARTIAL)
    share = options.pop(_PARTIAL, parameters.get(_PARTIAL, plain_share))
    share = 1.0 if share is None else share
    if share != 1 and family.partial_key is None:
        raise MixwellError(f"{where}: partial_rotary_factor is not 1; this decoder rotates whole heads only.")
    old = options.pop("type", "default")
    kind = options.pop("rope_type", None) or old
    if kind == "default" and set(options) <= {_ORIGINAL}:
        return Rope(theta, None, share)
    kind = "longrope" if kind == "su" else kind
    return Rope(theta, {"type": kind, **_completed(options, kind, full)}, share)


def _completed(options: dict[str, Any], kind: str, full: Keys) -> dict[str, Any]:
    """The options with those that follow from other keys."""
    most = full["max_position_embeddings"]
    needed = NEEDED.get(kind, ())
    if kind == "dynamic":
        options[_ORIGINAL] = most  # what transformers goes by
    elif _ORIGINAL in needed:
        options[_ORIGINAL] = full.get(_ORIGINAL) or options.get(_ORIGINAL) or most
    if "factor" in needed and options.get("factor") is None and kind != "dynamic" and _ORIGINAL in needed:
        options["factor"] = most / options[_ORIGINAL]
    return options


def rotary_dim(share: float, arch: Keys) -> int | None:
    """Channels of a head that turn, None where all do."""
    if share == 1:
        return None
    width = arch.get("head_dim") or arch["dim"] // arch["num_heads"]
    return int(width * share)


def write_rope(plain: Keys, mixers: Sequence[Keys], family: Family) -> dict[str, Any]:
    """Both spellings: rope_theta and rope_scaling are what other readers look for."""
    turned = next((m["rotary_dim"] for m in mixers if m.get("rotary_dim")), None)
    share = turned / plain["head_dim"] if turned else 1.0
    parameters = _written(plain, share if family.partial_key else None)
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_theta", _PARTIAL)}
    stretched = scaling["rope_type"] != "default"
    config = {family.theta_key: plain["rope_theta"], "rope_scaling": scaling if stretched else None}
    if family.partial_key:
        config[family.partial_key] = share
    if _ORIGINAL in family.defaults and _ORIGINAL in scaling:
        config[_ORIGINAL] = scaling[_ORIGINAL]
    if not family.rope_by_type:
        return config | {"rope_parameters": parameters}
    own = next((m for m in mixers if m.get("sliding_window")), None)
    local = own or {"rope_theta": family.defaults["rope_local_base_freq"]}
    by_type = {FULL: parameters, SLIDING: _written(local, None)}
    return config | {"rope_local_base_freq": local["rope_theta"], "rope_parameters": by_type}


def _written(source: Keys, share: float | None) -> dict[str, Any]:
    """rope_parameters of a model, or of a mixer."""
    scaling = dict(source.get("rope_scaling") or {"type": "default"})
    scaling["rope_type"] = scaling.pop("type")
    if scaling["rope_type"] == "dynamic":
        del scaling[_ORIGINAL]
    scaling["rope_theta"] = source["rope_theta"]
    return scaling if share is None else scaling | {_PARTIAL: share}
