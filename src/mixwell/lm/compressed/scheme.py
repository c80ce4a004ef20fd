"""How the weights of a folder are quantised: `quantization_config` in config.json, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixwell.core.errors import MixwellError, shown

METHOD = "compressed-tensors"
PACKED, PLAIN = "pack-quantized", "int-quantized"  # several codes to a word of 32 bits, or a byte for each
FORMATS = (PACKED, PLAIN)
BYTE = 8
Known = Mapping[str, tuple[Any, ...]]  # values that are read, by key
_OFF: tuple[Any, ...] = (None, {})
_WHOLE: Known = {"quantization_status": ("compressed",), "kv_cache_scheme": _OFF, "sparsity_config": _OFF,
                 "transform_config": _OFF}
_GROUP: Known = {"format": FORMATS, "output_activations": (None,)}
_WEIGHTS: Known = {"type": ("int",), "dynamic": (False,), "actorder": (None, "weight", "static"),
                   "strategy": ("tensor", "group", "channel"), "symmetric": (True, False)}
_INPUTS: Known = {"type": ("int",), "dynamic": (True,), "strategy": ("token",), "symmetric": (True,)}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way for all quantised matrices: w = scale (q - zero), q a whole number of `bits` bits with its sign."""

    format: str  # one of `FORMATS`
    bits: int  # 1 to 8
    group_size: int = 0  # numbers of a row that share a scale; 0: the whole row
    symmetric: bool = True  # no zero points
    tensor: bool = False  # one scale for the whole matrix
    input_bits: int = 0  # inputs are rounded token by token; 0: they are not

    def groups(self, width: int) -> int:
        """Groups in a row of `width`; raises ValueError where they do not fill it."""
        size = self.group_size or width
        if width % size:
            raise ValueError(f"groups of {size} do not fill rows of {width}")
        return width // size


def read_scheme(config: Mapping[str, Any], where: str) -> Scheme | None:
    """What config.json says of the weights; None where they are not quantised in this way.

    Anything that would be computed otherwise here raises `MixwellError`.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return None
    place = f"{where}: quantization_config"
    _expect(found, _WHOLE, place)
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise MixwellError(f"{place}.config_groups is {shown(groups)}; expected at least one group.")
    common = found.get("format")
    inside = f"{place}.config_groups"
    schemes = [_of_group(group, common, f"{inside}.{name}") for name, group in groups.items()]
    if len(set(schemes)) > 1:
        raise MixwellError(f"{inside}: {len(schemes)} groups that differ; one way for all matrices is read.")
    return schemes[0]


def _of_group(group: Any, common: Any, place: str) -> Scheme:
    _object(group, place)
    group = {**group, "format": group.get("format") or common}
    _expect(group, _GROUP, place)
    inside, weights = f"{place}.weights", group.get("weights")
    _object(weights, inside)
    _expect(weights, _WEIGHTS, inside)
    strategy = weights["strategy"]
    size = 0
    if strategy == "group":
        size = _whole(weights, "group_size", inside, 2**31)
    bits = _whole(weights, "num_bits", inside, BYTE)
    symmetric = bool(weights.get("symmetric", True))
    inputs = _input_bits(group.get("input_activations"), f"{place}.input_activations")
    return Scheme(format=group["format"], bits=bits, group_size=size, symmetric=symmetric,
                  tensor=strategy == "tensor", input_bits=inputs)


def _input_bits(inputs: Any, place: str) -> int:
    if inputs is None:
        return 0
    _object(inputs, place)
    _expect(inputs, _INPUTS, place)
    bits = _whole(inputs, "num_bits", place, BYTE)
    if bits < 2:
        raise MixwellError(f"{place}.num_bits is {bits}; expected 2 to {BYTE}.")
    return bits


def _object(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise MixwellError(f"{place} is {shown(value)}; expected keys and values.")


def _expect(values: Mapping[str, Any], known: Known, place: str) -> None:
    """Refuse another value than the ones known; the first is what an absent key means."""
    for key, allowed in known.items():
        value = values.get(key, allowed[0])
        if value not in allowed:
            names = " or ".join(map(repr, allowed))
            raise MixwellError(f"{place}.{key} is {shown(value)}; {names} is read.")


def _whole(values: Mapping[str, Any], key: str, place: str, most: int) -> int:
    value = values.get(key)
    if type(value) is int and 1 <= value <= most:  # True is none
        return value
    raise MixwellError(f"{place}.{key} is {shown(value)}; expected 1 to {most}.")


def written(scheme: Scheme, ignored: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of a folder whose matrices but the modules `ignored` are quantised by `scheme`."""
    strategy = "group" if scheme.group_size else "channel"
    weights = _arguments(scheme.bits, strategy)
    weights |= {"group_size": scheme.group_size or None, "symmetric": scheme.symmetric}
    inputs = None
    if scheme.input_bits:
        inputs = _arguments(scheme.input_bits, "token") | {"dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None,
             "format": scheme.format}
    return {"quant_method": METHOD, "format": scheme.format, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": list(ignored), "kv_cache_scheme": None,
            "global_compression_ratio": None}


def _arguments(bits: int, strategy: str) -> dict[str, Any]:
    """What the package says of a quantised tensor, everything else off."""
    return {"num_bits": bits, "type": "int", "symmetric": True, "group_size": None, "strategy": strategy,
            "block_structure": None, "dynamic": False, "actorder": None}
