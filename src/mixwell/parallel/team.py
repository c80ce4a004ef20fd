"""Processes that train one model: each reads rows of its own, experts may lie spread, and all end with one result.

What one process computes is its share of one loss, so gradients are summed. `Alone` is one process, for which all of it
is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.parallel.expert_parallel import own_experts, spread
from mixwell.parallel.moves import everyone
from mixwell.parallel.wire import ProcessWire, Wire

BUCKET_BYTES = 32 << 20  # of gradients that are summed in one call
SPREAD = ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias")  # of a mixture, its first axis the experts


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many processes do what; `data` times `expert` is their number."""

    data: int | None = None  # copies of each expert; default: what `expert` leaves of the processes
    expert: int = 1  # processes over which the experts of a mixture are spread
    shard: bool = False  # whether each process keeps a part of every parameter alone
    timeout_s: float = 300.0  # that a process waits for the others before it ends with a message

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; expected a number above 0")
        if self.shard and self.expert > 1:
            raise ValueError(f"shard with expert={self.expert}; expected one of them: shards are spread already")
        for name in ("data", "expert"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")

    def over(self, processes: int) -> Layout:
        """The layout with its numbers filled in; raises `MixwellError` where it does not fit the processes."""
        data = processes // self.expert if self.data is None else self.data
        if data * self.expert != processes:
            asked = f"data={self.data}, " if self.data is not None else ""
            raise MixwellError(f"parallel: {asked}expert={self.expert} does not fit {processes} processes; expected "
                               "data times expert to be their number (torchrun --nproc_per_node says how many start).")
        return replace(self, data=data)


class Alone:
    """One process."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written."""
        return self.rank == 0

    def attach(self, model: nn.Module, dtype: str = "fp32") -> nn.Module:
        """The model to train: this one, or one that holds a part of it; its balance losses see the tokens of all.

        dtype: the type that it is going to compute in, fp32 or bf16.
        """
        return model

    def release(self, model: nn.Module, used: nn.Module) -> None:
        """Give the model all that `used`, which `attach` gave, has learnt, and to every process the same."""

    def total(self, values: Tensor) -> Tensor:
        """Sums over the processes."""
        return values

    def most(self, value: float) -> float:
        """The largest value of any process."""
        return value

    def check_same(self, what: str, value: float) -> None:
        """Wait for all; raise where they found other values of what all should find."""

    def summed(self, grads: Mapping[str, Tensor | None], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients summed over the processes that hold the same parameter; None where none has one."""
        there = ((name, grad) for name, grad in grads.items() if grad is not None)
        return dict(there)

    def norm(self, grads: Mapping[str, Tensor]) -> Tensor:
        """Global L2 norm of summed gradients, a float32 scalar."""
        norms = torch._foreach_norm(list(grads.values()))
        return torch.stack(norms).norm()

    @property
    def keeps_parts(self) -> bool:
        """Whether this process holds a part alone of the parameters and of what is kept of them."""
        return False

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by `...parameter`, as DTensors where each process holds a part."""
        return dict(tensors)

    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This process's part of whole tensors by `...parameter`."""
        return tensors

    def seen(self, routings: Sequence[Sequence[Routing | None]]) -> list[list[Routing | None]]:
        """Routings of the tokens of all processes, without gradient."""
        return [list(layers) for layers in routings]


class Team(Alone):
    """Processes on wires: `world` between all, `experts` between those that hold different experts, `copies` between
    those that hold the same."""

    def __init__(self, world: Wire, experts: Wire, copies: Wire, spreads: bool = True) -> None:
        self.world, self.experts, self.copies = world, experts, copies
        self.rank, self.size = world.rank, world.size
        self.spreads = spreads and experts.size > 1
        self._spread: set[str] = set()
        self._made: Any = None  # the mesh of copies and experts, once it is asked for

    def fitting(self, model: nn.Module) -> Team:
        """The team for a model: where it has no mixture to spread, its rows alone are shared out."""
        mixed = next(_mixtures(model), None) is not None
        return self if mixed else Team(self.world, self.experts, self.copies, spreads=False)

    def attach(self, model: nn.Module, dtype: str = "fp32") -> nn.Module:
        model.peers = self  # type: ignore[assignment]
        if not self.spreads:
            return model
        found = list(_mixtures(model))
        if not found:
            raise MixwellError(f"parallel: expert={self.experts.size}, and the model has no mixture whose experts "
                               "could be spread; leave expert out.")
        for name, layer in found:
            self._take_own(name, layer)
        return model

    def _take_own(self, name: str, layer: Any) -> None:
        for part, parameter in _stacks(layer):
            try:
                own = own_experts(parameter.data, self.experts)
            except ValueError as error:
                raise MixwellError(f"parallel: {name}: {error}.") from error
            parameter.data = own.clone()
            self._spread.add(f"{name}.{part}")
        layer.spread = lambda rows, counts, run: spread(rows, counts, self.experts, run)

    def release(self, model: nn.Module, used: nn.Module) -> None:
        model.peers = None  # type: ignore[assignment]
        for name, layer in _mixtures(model):
            if layer.spread is None:
                continue
            layer.spread = None
            for part, parameter in _stacks(layer):
                parameter.data = self._joined(f"{name}.{part}", parameter.data)
        self._spread.clear()

    def total(self, values: Tensor) -> Tensor:
        return self.world.total(values)

    def most(self, value: float) -> float:
        found = self.world.gather(torch.tensor([value], dtype=torch.float64))
        return float(torch.cat(found).max())

    def check_same(self, what: str, value: float) -> None:
        found = self.world.gather(torch.tensor([value], dtype=torch.float64))
        values = torch.cat(found).tolist()
        if len(set(values)) > 1:
            raise MixwellError(f"{what} is {values} in the processes; expected one value. They must share the folder "
                               "of the run.")

    def joined(self, routing: Routing, context: Context) -> tuple[Routing, Context]:
        """The tokens of all processes; see `Peers`."""
        found = self._joined_routing(routing)
        facts: dict[str, Any] = {}
        for name in ("token_ids_T", "mask_T", "positions_T", "labels_T"):
            value = getattr(context, name)
            if value is not None:
                facts[name] = torch.cat(self.world.gather(value))
        if context.batch_shape is not None:
            rows, length = context.batch_shape
            facts["batch_shape"] = (rows * self.size, length)
        return found, replace(context, **facts)

    def _joined_routing(self, routing: Routing) -> Routing:
        slots = routing.indices_TK.shape[1]
        most = int(self.most(slots))
        missing = most - slots
        indices = nn.functional.pad(routing.indices_TK, (0, missing), value=-1)
        weights = nn.functional.pad(routing.weights_TK, (0, missing))
        logits = routing.logits_TE
        if logits is not None:
            logits = everyone(logits, self.world)
        scores = everyone(routing.scores_TE, self.world)
        return Routing(torch.cat(self.world.gather(indices)), everyone(weights, self.world), scores, logits)

    @torch.no_grad()
    def seen(self, routings: Sequence[Sequence[Routing | None]]) -> list[list[Routing | None]]:
        return [[None if routing is None else self._joined_routing(routing) for routing in layers]
                for layers in routings]

    def summed(self, grads: Mapping[str, Tensor | None], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        present = torch.tensor([float(grad is not None) for grad in grads.values()])
        anywhere = self.world.total(present).tolist()
        found: dict[str, Tensor] = {}
        for (name, grad), count in zip(grads.items(), anywhere):
            if count:
                found[name] = torch.zeros_like(like[name]) if grad is None else grad
        shared, own = self._parted(found)
        _sum_in_buckets(shared.values(), self.world)
        _sum_in_buckets(own.values(), self.copies)
        return found

    def _parted(self, grads: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradients of what every process holds, and those of experts that lie spread."""
        shared: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        for name, grad in grads.items():
            into = own if name in self._spread else shared
            into[name] = grad
        return shared, own

    def norm(self, grads: Mapping[str, Tensor]) -> Tensor:
        shared, own = self._parted(grads)
        squares = _square(shared)
        if self._spread:
            squares = squares + self.experts.total(_square(own))
        return squares.sqrt()

    @property
    def keeps_parts(self) -> bool:
        return bool(self._spread) and isinstance(self.world, ProcessWire)  # threads share one memory

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            apart = self.keeps_parts and self._is_spread(name, tensor)
            found[name] = self._as_part(tensor) if apart else self._joined(name, tensor)
        return found

    def _as_part(self, tensor: Tensor) -> Tensor:
        """Experts of this process as a part of all: neighbours hold others, those of another copy the same."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        return DTensor.from_local(tensor, self._mesh(), [Replicate(), Shard(0)])

    def _mesh(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        if self._made is None:
            self._made = init_device_mesh("cpu", (self.copies.size, self.experts.size))
        return self._made

    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not self._spread:
            return tensors
        found = {}
        for name in tensors:
            tensor = tensors[name]
            found[name] = own_experts(tensor, self.experts) if self._is_spread(name, tensor) else tensor
        return found

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        if not self._is_spread(name, tensor):
            return tensor
        return torch.cat(self.experts.gather(tensor.detach()))

    def _is_spread(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor of the optimizer's state (`exp_avg.layers.0...`) or a parameter is one with experts."""
        parameter = name.partition(".")[2]
        return tensor.ndim > 0 and (name in self._spread or parameter in self._spread)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that torch keeps spread (a DTensor); all of another."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def _mixtures(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers whose experts can be spread, by name."""
    for name, module in model.named_modules():
        if hasattr(type(module), "spread"):
            yield name, module


def _stacks(layer: Any) -> Iterator[tuple[str, nn.Parameter]]:
    own = dict(layer.named_parameters(recurse=False))
    for part in SPREAD:
        if part in own:
            yield part, own[part]


def _square(grads: Mapping[str, Tensor]) -> Tensor:
    if not grads:
        return torch.zeros(())
    norms = torch._foreach_norm(list(grads.values()))
    return torch.stack(norms).square().sum()


def _sum_in_buckets(grads: Collection[Tensor], wire: Wire) -> None:
    """Sum each of the tensors over the workers, in place, many in a call."""
    for bucket in _buckets(grads):
        flat = torch.cat([grad.flatten() for grad in bucket])
        summed = wire.total(flat).split([grad.numel() for grad in bucket])
        for grad, part in zip(bucket, summed):
            grad.copy_(part.view_as(grad))


def _buckets(grads: Collection[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        own = math.prod(grad.shape) * grad.element_size()
        if bucket and size + own > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += own
    if bucket:
        yield bucket
