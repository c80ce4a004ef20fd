"""What conversions share: a checkpoint being rewritten with every tensor accounted for, and a look at its layers.

Legend: E experts, F hidden width, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.mixing import build_router, renormalises

DENSE, SPARSE = "experts.layers.swiglu", "experts.layers.moe"
GATE_UP, DOWN = "gate_up_proj", "down_proj"
SHARED_GATE_UP, SHARED_DOWN = "shared_gate_up_proj", "shared_down_proj"
Block = tuple[Tensor, Tensor]  # gate above up [.., 2 F, D], down [.., D, F]
ACCOUNT = "account"  # key of the record in which a conversion says what became of its source's tensors


def channel(layer: int, name: str) -> str:
    """Canonical name of a tensor of one layer's channel mixer."""
    return f"layers.{layer}.channel_mixer.{name}"


def is_method(spec: Mapping[str, Any], name: str) -> bool:
    """Whether a channel mixer's options name the method `name`, fully or in short."""
    method = str(spec.get("method", ""))
    return name == method or name.rpartition(".")[2] == method


def refuse_quantised(tensors: Mapping[str, Any], doing: str) -> None:
    """Raise `MixwellError` for integer weights: conversions work on real ones."""
    for name in tensors:
        if f"{name}.scale" in tensors:
            raise MixwellError(f"{name} is quantised; {doing} needs full weights. Convert first and quantise last.")


class Rewrite:
    """A checkpoint on its way to becoming another: what is neither taken nor dropped is copied.

    `take` hands a tensor over to be used, `drop` lets one go by a rule that it names, `put` places a new one. What was
    done stands in the result's last record, and whoever runs conversions compares it with the source.
    """

    def __init__(self, checkpoint: Checkpoint, doing: str) -> None:
        refuse_quantised(checkpoint.tensors, doing)
        self.source = checkpoint
        self.specs = channel_mixers(checkpoint.arch)
        self.left = dict(checkpoint.tensors)
        self.made: dict[str, Tensor] = {}
        self.used: list[str] = []
        self.dropped: dict[str, str] = {}

    def take(self, layer: int, name: str) -> Tensor:
        """A tensor of one layer's channel mixer, which the conversion answers for from now on."""
        full = channel(layer, name)
        self.used.append(full)
        return self.left.pop(full)

    def take_block(self, layer: int) -> Block:
        """The dense block, or the routed experts, of a layer."""
        gate_up = self.take(layer, GATE_UP)
        return gate_up, self.take(layer, DOWN)

    def put_block(self, layer: int, block: Block) -> None:
        """Place a dense block, or routed experts."""
        gate_up, down = block
        self.put(layer, GATE_UP, gate_up)
        self.put(layer, DOWN, down)

    def put_shared(self, layer: int, block: Block) -> None:
        """Place the shared experts of a layer, side by side."""
        gate_up, down = block
        self.put(layer, SHARED_GATE_UP, gate_up)
        self.put(layer, SHARED_DOWN, down)

    def take_router(self, layer: int) -> dict[str, Tensor]:
        """The tensors of a layer's router by their names below the layer."""
        start = channel(layer, "")
        names = [name.removeprefix(start) for name in self.left if name.startswith(f"{start}router.")]
        return {name: self.take(layer, name) for name in names}

    def put(self, layer: int, name: str, tensor: Tensor) -> None:
        """Place a tensor in a layer's channel mixer."""
        self.made[channel(layer, name)] = tensor

    def drop(self, layer: int, start: str, rule: str) -> None:
        """Let the tensors of a layer's channel mixer go whose names begin with `start`, for the reason `rule`."""
        for name in [name for name in self.left if name.startswith(channel(layer, start))]:
            del self.left[name]
            self.dropped[name] = rule

    def put_router(self, layer: int, router: torch.nn.Module) -> None:
        """Place a router's own tensors."""
        for name, value in router.state_dict().items():
            self.put(layer, f"router.{name}", value)

    def result(self) -> Checkpoint:
        """The new checkpoint, its channel mixers as `specs` says."""
        arch = with_channel_mixers(self.source.arch, self.specs)
        account = {"used": list(self.used), "dropped": dict(self.dropped)}
        return self.source.derive(arch=arch, tensors={**self.left, **self.made}, record={ACCOUNT: account})


def dense_layers(specs: Sequence[Mapping[str, Any]], named: Sequence[int] | None, doing: str) -> list[int]:
    """The layers to make mixtures of: those named, else all that are dense.

    Raises `MixwellError` where there is none, a named one is not there or not dense, or a block has what experts that
    are gated by silu and without biases could not copy.
    """
    dense = [layer for layer, spec in enumerate(specs) if is_method(spec, DENSE)]
    for layer in dense:
        _check_plain(specs[layer], layer, doing)
    return _chosen(dense, named, len(specs), f"no dense layer for {doing}: this model is a mixture already. Hand in a "
                                             "dense one.", "dense")


def mixture_layers(specs: Sequence[Mapping[str, Any]], named: Sequence[int] | None, doing: str) -> list[int]:
    """The mixtures to work on: the layers named, else all. Raises `MixwellError` where there is none of them."""
    sparse = [layer for layer, spec in enumerate(specs) if is_method(spec, SPARSE)]
    for layer in sparse:
        if specs[layer].get("clamp") is not None:
            raise MixwellError(f"layer {layer} has experts with biases and a clamped activation; {doing} takes plain "
                               "ones only.")
    return _chosen(sparse, named, len(specs), f"no mixture of experts for {doing}: hand in a model that has one.",
                   "mixture")


def _chosen(found: list[int], named: Sequence[int] | None, count: int, none: str, kind: str) -> list[int]:
    chosen = found if named is None else list(named)
    if not chosen:
        raise MixwellError(none)
    for layer in chosen:
        if layer not in found:
            raise MixwellError(f"layers names {layer}; expected {kind} layers among 0 to {count - 1}.")
    return chosen


def _check_plain(spec: Mapping[str, Any], layer: int, doing: str) -> None:
    """Refuse a dense block that experts, gated by silu and without biases, could not copy."""
    usual = {"activation": "silu", "gated": True, "bias": False}
    for option, value in usual.items():
        found = spec.get(option, value)
        if found != value:
            raise MixwellError(f"layer {layer} has a dense block with {option} = {found!r}; {doing} takes "
                               f"{value!r} only.")


def top_k(spec: Mapping[str, Any], layer: int, doing: str) -> int:
    """Experts a token of a mixture; raises `MixwellError` where its router takes no fixed number."""
    router = spec.get("router") or {"k": 2}
    k = router.get("k", 2 if router.get("method", "top_k") == "top_k" else None)
    if not isinstance(k, int):
        raise MixwellError(f"layer {layer} has the router {router.get('method')!r} without a k; {doing} needs one that "
                           "takes k experts a token, such as top_k.")
    return k


def is_top_k(router: Mapping[str, Any]) -> bool:
    """Whether a layer's router is the plain top_k."""
    method = str(router.get("method", "top_k"))
    return method.rpartition(".")[2] == "top_k"


def sums_to_one(router: Mapping[str, Any]) -> bool:
    """Whether a token's weights are known to sum to 1, so that copies of one function give that function."""
    if str(router.get("method")).rpartition(".")[2] == "shared_first":
        return True
    if not is_top_k(router) or router.get("scale", 1.0) != 1.0:
        return False
    return renormalises(router.get("k", 2), router.get("renormalise"))


def expert_units(gate_up: Tensor, down: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden units named of a block: (gate above up [2 n, D], down [D, n])."""
    hidden = down.shape[-1]
    rows = torch.cat([units, units + hidden])
    return gate_up[rows], down[:, units]


def activations(x_TD: Tensor, gate_up: Tensor) -> Tensor:
    """h = silu(W_gate x) * (W_up x) of each token, float32 [T, F]."""
    both = x_TD @ gate_up.float().T
    gate, up = both.chunk(2, dim=-1)
    return silu(gate) * up


def loudness(gate_up: Tensor, down: Tensor) -> Tensor:
    """||W_gate[i]|| ||W_up[i]|| ||W_down[:, i]|| of each hidden unit, float32 [F]."""
    gate, up = gate_up.float().chunk(2)
    into = gate.norm(dim=1) * up.norm(dim=1)
    return into * down.float().norm(dim=0)


def smallest_k(mass_K: Tensor, share: float) -> int:
    """The smallest k whose slots, the heaviest first, carry this share of the mean weights [K]."""
    carried = mass_K.double().cumsum(0)
    least = share - 1e-6  # what is whole but for rounding stays whole
    return int((carried / carried[-1] < least).sum()) + 1


def stacked(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Experts of one shape in one tensor each: (gate_up_proj [E, 2 F, D], down_proj [E, D, F])."""
    gate_up, down = zip(*parts)
    return torch.stack(gate_up), torch.stack(down)


def to_dense(work: Rewrite, layer: int, block: tuple[Tensor, Tensor]) -> None:
    """Put a dense block (gate above up [2 F, D], down [D, F]) in place of a mixture, its shared experts beside.

    Raises `MixwellError` where these are gated, which no dense block is.
    """
    spec = work.specs[layer]
    if spec.get("shared_gate"):
        raise MixwellError(f"layer {layer} gates its shared experts, which a dense block cannot; keep it a mixture.")
    if spec.get("shared_experts"):
        shared = work.take(layer, SHARED_GATE_UP), work.take(layer, SHARED_DOWN)
        block = side_by_side([block, shared])
    work.drop(layer, "router.", "a dense block chooses nothing")
    gate_up, down = block
    work.put_block(layer, (gate_up.contiguous(), down.contiguous()))
    hidden = down.shape[1]
    work.specs[layer] = {"method": DENSE, "hidden_dim": hidden}


def side_by_side(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One block that sums what several give: (gate above up [2 F, D], down [D, F])."""
    halves = [gate_up.chunk(2) for gate_up, _ in blocks]
    downs = [down for _, down in blocks]
    gates, ups = zip(*halves)
    gate_up = torch.cat([*gates, *ups])
    down = torch.cat(downs, dim=1)
    return gate_up, down


def fresh_router(spec: Mapping[str, Any], dim: int, num_experts: int, generator: torch.Generator,
                 first: Any = None) -> Any:
    """A router at its start; what routers keep in common over depth stands once, in the first layer's."""
    router: Any = build_router(spec, dim, num_experts, generator)
    if first is not None:
        router.share(first)
    return router


def dense_example(generator: torch.Generator, hidden: int = 8) -> Checkpoint:
    """The feed-forward blocks of a dense model of two layers of width six."""
    arch = {"num_layers": 2, "dim": 6, "channel_mixer": {"method": DENSE, "hidden_dim": hidden}}
    tensors = {}
    for layer in range(2):
        tensors[channel(layer, GATE_UP)] = torch.randn(2 * hidden, 6, generator=generator)
        tensors[channel(layer, DOWN)] = torch.randn(6, hidden, generator=generator)
    return Checkpoint(arch, tensors)


def sparse_example(generator: torch.Generator, num_experts: int = 4) -> Checkpoint:
    """The mixtures of a model of two layers of width six, their experts four units wide, two for each token."""
    router = {"method": "top_k", "k": 2}
    mixer = {"method": SPARSE, "hidden_dim": 4, "num_experts": num_experts, "router": router}
    tensors = {}
    for layer in range(2):
        tensors[channel(layer, GATE_UP)] = torch.randn(num_experts, 8, 6, generator=generator)
        tensors[channel(layer, DOWN)] = torch.randn(num_experts, 6, 4, generator=generator)
        tensors[channel(layer, "router.weight")] = torch.randn(num_experts, 6, generator=generator)
    arch = {"num_layers": 2, "dim": 6, "channel_mixer": mixer}
    return Checkpoint(arch, tensors)
