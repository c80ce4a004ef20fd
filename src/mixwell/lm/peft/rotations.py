"""PEFT's rotations, BOFT and OFT, and those of `adapters.boft`: the same numbers under other names and signs.

PEFT's OFT keeps the upper triangle of a skew matrix S, and by default a sum in S in the place of the inverse: the sum
of (I + S)(I - S)^-1, where its exact form is (I - S)(I + S)^-1, so S changes its sign with that option.

Legend: O outputs, I inputs, M factors, N blocks, B width of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.peft.places import Place, module_of

TERMS = 5  # of PEFT's sum by default


def rotating(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `adapters.boft` as far as PEFT's config says them; those of the tensors come from `rotated`."""
    if config["peft_type"] == "BOFT":
        return {"gain": True, "dropout": config.get("boft_dropout") or 0.0}
    summed = config.get("use_cayley_neumann", True)
    terms = max(4, config.get("num_cayley_neumann_terms", TERMS))  # PEFT's sum of three terms has four
    return {"gain": False, "dropout": config.get("module_dropout") or 0.0, "series": terms if summed else 0}


def rotated(canonical: str, modules: Sequence[Any], weight: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """R [G, M, N, B, B] (and s [O]) of the modules of one tensor [O, I]; what the tensors say goes into `options`."""
    first = modules[0]
    if weight.ndim == 3:
        raise MixwellError(f"{first.name}: rotations on experts are not read from PEFT's files.")
    outputs, inputs = weight.shape
    blocks = {held.name: _blocks(held, inputs, options) for held in modules}
    size = blocks[first.name].shape[-1]
    if options.setdefault("block_size", size) != size:
        raise MixwellError(f"{first.name}: the file has blocks of {size} and of {options['block_size']}; expected one "
                           "size for all (boft_block_size or oft_block_size, not a number of blocks).")
    factors = len(blocks[first.name])
    if options.setdefault("factors", factors) != factors:
        raise MixwellError(f"{first.name}: the file has {factors} factors and {options['factors']}; expected as many "
                           "everywhere.")
    parts = _by_rows(modules, blocks, outputs)
    if len(parts) > 1:
        sizes = tuple(len(rows) for rows, _ in parts)
        options.setdefault("groups", {})[canonical] = sizes
    found = {"R": torch.stack([R for _, R in parts])}
    if options["gain"]:
        found["gain"] = _gain(modules, outputs)
    return found


def _blocks(held: Any, inputs: int, options: Mapping[str, Any]) -> Tensor:
    """A module's R [M, N, B, B]."""
    name = "boft_R" if options["gain"] else "oft_R"
    if name not in held.parts:
        raise MixwellError(f"{held.name}.{name} is missing in the file; nothing was loaded.")
    found: Tensor = held.parts[name] if options["gain"] else _skew(held.parts[name], inputs, options)
    count, size = found.shape[1], found.shape[-1]
    if count * size != inputs:
        raise MixwellError(f"{held.name}: the file turns {count * size} inputs, this base has {inputs}; the adapter "
                           "was made for another base.")
    return found


def _skew(upper: Tensor, inputs: int, options: Mapping[str, Any]) -> Tensor:
    """S [1, N, B, B] of upper triangles [N, B (B - 1) / 2]; one that all blocks share comes once."""
    numbers = upper.shape[1]
    size = round((1 + (1 + 8 * numbers) ** 0.5) / 2)
    rows, columns = torch.triu_indices(size, size, 1)
    S = upper.new_zeros(len(upper), size, size)
    S[:, rows, columns] = upper
    S = S - S.mT
    if options["series"]:
        S = -S
    if len(S) == 1:
        S = S.expand(inputs // size, -1, -1)
    return S[None]


def _by_rows(modules: Sequence[Any], blocks: Mapping[str, Tensor], outputs: int) -> list[tuple[range, Tensor]]:
    """(rows, R) from the first row to the last, rows that no module adapts at rest; one where all turn alike."""
    still = torch.zeros_like(blocks[modules[0].name])
    placed = sorted(modules, key=lambda held: range(outputs)[held.place.rows].start)
    found: list[tuple[range, Tensor]] = []
    end = 0
    for held in placed:
        rows = range(outputs)[held.place.rows]
        if rows.start > end:
            found.append((range(end, rows.start), still))
        found.append((rows, blocks[held.name]))
        end = rows.stop
    if end < outputs:
        found.append((range(end, outputs), still))
    first = found[0][1]
    alike = all(torch.equal(R, first) for _, R in found)
    return [(range(outputs), first)] if alike else found


def _gain(modules: Sequence[Any], outputs: int) -> Tensor:
    """s [O] of the modules' own, 1 elsewhere."""
    found = torch.ones(outputs)
    for held in modules:
        place: Place = held.place
        if "boft_s" not in held.parts:
            raise MixwellError(f"{held.name}.boft_s is missing in the file; nothing was loaded.")
        own = held.parts["boft_s"].flatten()
        rows = found[place.rows]
        if len(own) != len(rows):
            raise MixwellError(f"{held.name}: the file scales {len(own)} outputs, this base has {len(rows)}; the "
                               "adapter was made for another base.")
        found[place.rows] = place.arranged(own, 0)
    return found


class Rotations:
    """What a BOFT file holds, or an OFT one where there is one factor and no gain."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.plain = options.factors == 1 and not options.gain
        if options.series and not self.plain:
            raise MixwellError("PEFT's BOFT has no series in the place of the inverse; save the adapter by "
                               "mixwell.adapters.files, or merge it.")
        self.tensors: dict[str, Tensor] = {}
        self.modules: list[str] = []

    def add(self, canonical: str, adapter: Any, places: Mapping[str, Place]) -> None:
        """The tensors of one target."""
        if adapter.target.stack:
            raise MixwellError(f"{canonical}: PEFT has no rotations on experts; save it by mixwell.adapters.files, or "
                               "merge it.")
        outputs = adapter.target.outputs
        for name, place in places.items():
            path = module_of(name)
            self.modules.append(path)
            rows = range(outputs)[place.rows]
            R = _covering(canonical, adapter, rows)
            if self.plain:
                self.tensors[f"{path}.oft_R.weight"] = self._upper(R[0])
                continue
            gain = torch.ones(outputs) if adapter.gain is None else adapter.gain.detach()
            back = place.given_back(gain, 0)[place.rows]
            self.tensors[f"{path}.boft_R"] = R.clone()
            self.tensors[f"{path}.boft_s"] = back[:, None].clone()

    def _upper(self, R: Tensor) -> Tensor:
        """The upper triangles [N, B (B - 1) / 2] of the skew parts of R [N, B, B]."""
        S = (R - R.mT) / 2
        if self.options.series:
            S = -S
        rows, columns = torch.triu_indices(S.shape[-1], S.shape[-1], 1)
        return S[:, rows, columns].clone()

    def config(self) -> dict[str, Any]:
        """PEFT's, as far as it depends on the method."""
        options = self.options
        common = {"target_modules": sorted(self.modules), "bias": "none", "fan_in_fan_out": False, "init_weights": True}
        if self.plain:
            return {**common, "peft_type": "OFT", "r": 0, "oft_block_size": options.block_size,
                    "module_dropout": options.dropout, "use_cayley_neumann": bool(options.series),
                    "num_cayley_neumann_terms": options.series or TERMS}
        return {**common, "peft_type": "BOFT", "boft_block_size": options.block_size, "boft_block_num": 0,
                "boft_n_butterfly_factor": options.factors, "boft_dropout": options.dropout}


def _covering(canonical: str, adapter: Any, rows: range) -> Tensor:
    """R [M, N, B, B] of the group that the rows lie in."""
    start = 0
    for size, R in zip(adapter.groups, adapter.R.detach()):
        end = start + size
        if start <= rows.start and rows.stop <= end:
            return R
        start = end
    raise MixwellError(f"{canonical}: its groups of rows are not those of the modules in transformers, so PEFT cannot "
                       "hold them.")
