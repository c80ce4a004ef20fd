"""Cutting a model narrower: which hidden units of its feed-forward blocks stay, and in which layer how many.

The experts of a mixture keep one width, each units of its own; shared experts are one block beside them.

Legend: T tokens, D width of the model, F hidden width, E experts, L layers, n units that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.mixing.calibration import Inputs
from mixwell.precision._statistics import calibrated

KINDS = ("swiglu", "moe")  # of experts.layers
Weights = tuple[Tensor, Tensor]  # gate above up [.., 2 F, D], down [.., D, F]
PLAIN = {"activation": "silu", "gated": True, "bias": False, "clamp": None}  # what is cut knows no other blocks


@dataclass(frozen=True)
class Block:
    """The feed-forward block of a layer: a dense one, all routed experts, or the shared experts side by side."""

    layer: int
    shared: bool = False

    def _name(self, part: str) -> str:
        prefix = "shared_" if self.shared else ""
        return f"layers.{self.layer}.channel_mixer.{prefix}{part}"

    @property
    def gate_up(self) -> str:
        """Name of its first map."""
        return self._name("gate_up_proj")

    @property
    def down(self) -> str:
        """Name of its second map."""
        return self._name("down_proj")

    def weights(self, checkpoint: Checkpoint) -> Weights:
        """Its two maps."""
        return checkpoint.tensors[self.gate_up], checkpoint.tensors[self.down]

    def width(self, checkpoint: Checkpoint) -> int:
        """F, of each expert where it is a stack."""
        return checkpoint.tensors[self.down].shape[-1]


def blocks(checkpoint: Checkpoint, doing: str) -> list[Block]:
    """The feed-forward blocks of a model, first layer first.

    Raises `MixwellError` for quantised weights, and for layers that are neither SwiGLU blocks nor mixtures of them.
    """
    found = []
    for layer, spec in enumerate(channel_mixers(checkpoint.arch)):
        _check_plain(spec, layer, doing)
        found.append(Block(layer))
        if spec.get("shared_experts"):
            found.append(Block(layer, shared=True))
    for block in found:
        refuse_quantised(checkpoint, (block.gate_up, block.down), doing)
    return found


def refuse_quantised(checkpoint: Checkpoint, names: Sequence[str], doing: str) -> None:
    """Raise `MixwellError` where one of these weights is stored in few bits."""
    for name in names:
        if not checkpoint.tensors[name].is_floating_point():
            raise MixwellError(f"{name} is quantised; {doing} needs full weights. Cut first and quantise last.")


def _check_plain(spec: Mapping[str, Any], layer: int, doing: str) -> None:
    method = str(spec.get("method"))
    short = method.rpartition(".")[2]
    if short not in KINDS:
        raise MixwellError(f"layer {layer} is {method}; {doing} cuts experts.layers.swiglu and moe only.")
    for option, value in PLAIN.items():
        found = spec.get(option, value)
        if found != value:
            raise MixwellError(f"layer {layer} has {option} = {found!r}; {doing} takes {value!r} only.")


def kept_units(weights: Weights, kept: Tensor) -> Weights:
    """A block with the hidden units `kept` [n] alone, or a stack whose experts have their own, [E, n]."""
    gate_up, down = weights
    if down.ndim == 2:
        hidden = down.shape[-1]
        rows = torch.cat([kept, kept + hidden])
        return gate_up[rows], down[:, kept]
    each = zip(zip(gate_up, down), kept)
    parts = [kept_units(own, units) for own, units in each]
    gates, downs = zip(*parts)
    return torch.stack(gates), torch.stack(downs)


def best(score: Tensor, count: int) -> Tensor:
    """Places of the `count` largest scores [.., F], in order; of equal ones the first."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(-1).values


def each_matrix(work: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """`work` of a block's tensors, or of each expert's in turn, stacked; the first is a weight [.., O, I]."""
    first, *rest = given
    if first.ndim == 2:
        return work(*given)
    found = []
    for expert, own in enumerate(first):
        beside = [other[expert] for other in rest]
        found.append(work(own, *beside))
    return torch.stack(found)


def widths(full: Sequence[int], shares: Sequence[float], multiple: int) -> list[int]:
    """Widths that are multiples of `multiple`, of blocks `full` wide of which these `shares` stay.

    What rounding down leaves goes to the largest remainders, so that the sum is as asked to within one multiple. Raises
    `MixwellError` for a block narrower than one multiple.
    """
    narrow = min(full)
    if narrow < multiple:
        raise MixwellError(f"a block is {narrow} units wide; expected multiple = {narrow} or less.")
    wanted = [wide * share / multiple for wide, share in zip(full, shares)]
    steps = [max(1, int(one)) for one in wanted]
    left = round(sum(wanted)) - sum(steps)
    short = [step - one for one, step in zip(wanted, steps)]
    neediest = sorted(range(len(full)), key=short.__getitem__)
    for place in neediest[: max(0, left)]:
        steps[place] += 1
    each = zip(full, shares, steps)
    return [_whole(*sizes, multiple) for sizes in each]


def _whole(full: int, share: float, steps: int, multiple: int) -> int:
    most = full // multiple
    return full if share >= 1 else min(steps, most) * multiple


def staying(checkpoint: Checkpoint, found: Sequence[Block], kept_L: Sequence[float], multiple: int) -> dict[Block, int]:
    """The width of each block of which its layer's share stays; see `widths`."""
    full = [block.width(checkpoint) for block in found]
    shares = [kept_L[block.layer] for block in found]
    return dict(zip(found, widths(full, shares, multiple)))


def cosines(checkpoint: Checkpoint, calibration: Inputs) -> Tensor:
    """Cosine of what each layer reads and leaves of every token's residual stream, float64 [L, T]."""
    found = []
    for streams in calibration.streams(checkpoint):
        wide = [stream.double() for stream in streams]
        pairs = pairwise(wide)
        rows = [cosine_similarity(before, after, -1) for before, after in pairs]
        found.append(torch.stack(rows))
    cosines_LT = torch.cat(found, 1)
    return cosines_LT.clamp(-1, 1)


def cut(checkpoint: Checkpoint, made: Mapping[Block, Weights], calibration: Inputs, *,
        others: Mapping[str, Tensor] | None = None, sequence_mixers: Sequence[Mapping[str, Any]] | None = None,
        ) -> Checkpoint:
    """The checkpoint with these blocks in place of its own, and other tensors and sequence mixers where given."""
    changed = dict(others or {})
    specs = channel_mixers(checkpoint.arch)
    for block, (gate_up, down) in made.items():
        changed[block.gate_up] = gate_up.contiguous()
        changed[block.down] = down.contiguous()
        spec = specs[block.layer]
        width = down.shape[-1]
        specs[block.layer] = _narrowed(spec, block, width)
    arch = with_channel_mixers(checkpoint.arch, specs)
    if sequence_mixers is not None:
        arch["sequence_mixer"] = [dict(spec) for spec in sequence_mixers]
    record = calibrated(checkpoint, calibration)
    record["account"]["used"] = list(changed)
    tensors = {**checkpoint.tensors, **changed}
    return checkpoint.derive(arch=arch, tensors=tensors, record=record)


def _narrowed(spec: Mapping[str, Any], block: Block, width: int) -> dict[str, Any]:
    if block.shared:  # side by side they are one
        return {**spec, "shared_experts": 1, "shared_hidden_dim": width}
    shared = dict(spec)
    if spec.get("shared_experts") and not spec.get("shared_hidden_dim"):
        shared["shared_hidden_dim"] = spec["hidden_dim"]  # until now that of the experts
    return {**shared, "hidden_dim": width}
