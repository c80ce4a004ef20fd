"""Fully sharded training: every process keeps a part of each parameter, its gradient and its moments, and a layer's
parameters are whole only while it computes.

torch's `fully_shard` does it: each layer is a group that is gathered before its forward and its backward pass, and
whose gradients are summed and scattered behind. The model that was handed in lends its numbers to a sharded twin and
holds none meanwhile.
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils import _pytree as trees

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.parallel.team import Team, own_part
from mixwell.parallel.wire import Wire

MMAP_THRESHOLD, LARGE_BYTES = -3, 1 << 20  # glibc's name of the option; blocks from here on
READS = ("loss", "token_nats")  # of a model, beside `forward`, that compute with its parameters


class Sharded(Team):
    """Processes that hold a part of every parameter each."""

    def __init__(self, world: Wire) -> None:
        super().__init__(world, experts=world, copies=world, spreads=False)
        self._row = init_device_mesh("cpu", (world.size,))

    def fitting(self, model: nn.Module) -> Sharded:
        return self

    def attach(self, model: nn.Module, dtype: str = "fp32") -> nn.Module:
        if dtype != "fp32":
            raise MixwellError(f"parallel: shard=true computes in fp32, and {dtype} is asked for; set train.dtype to "
                               "fp32, or train without shard.")
        _return_memory()
        twin = _twin(model)
        twin.peers = self  # type: ignore[assignment]
        _watch_outputs()
        self._shard(twin)
        for name in READS:
            register_fsdp_forward_method(twin, name)
        for part in _parts(twin):
            part.set_gradient_divide_factor(1.0)  # what a process computes is its share of one loss
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)
        self._spread = {name for name, _ in twin.named_parameters()}
        return twin

    def _shard(self, model: nn.Module) -> None:
        """Each layer by itself, then the rest."""
        _refuse_shared(model)
        try:
            for layer in model.layers:  # type: ignore[union-attr]
                fully_shard(layer, mesh=self._row)
            fully_shard(model, mesh=self._row)
        except (NotImplementedError, ValueError) as error:
            raise MixwellError(f"parallel: shard=true does not go with this model: {error}") from error

    def release(self, model: nn.Module, used: nn.Module) -> None:
        mine = dict(model.named_parameters())
        for name, parameter in used.named_parameters():
            mine[name].data = _full(parameter.detach())
        buffers = dict(used.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        self._spread = set()

    def summed(self, grads: Mapping[str, Tensor | None], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        there = {}
        for name, grad in grads.items():
            if grad is not None:
                there[name] = grad
        return there

    def norm(self, grads: Mapping[str, Tensor]) -> Tensor:
        own = [own_part(grad) for grad in grads.values()]
        norms = torch._foreach_norm(own)
        squares = torch.stack(norms).square().sum()
        return self.world.total(squares).sqrt()

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = {}
        for name in tensors:
            tensor = tensors[name]
            spread = self._is_spread(name, tensor)
            found[name] = self._cut(tensor) if spread else tensor
        return found

    def _cut(self, tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, self._row, [Shard(0)], src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _refuse_shared(model: nn.Module) -> None:
    """Raise where layers have a parameter in common: each is gathered by itself."""
    owner: dict[int, int] = {}
    for number, layer in enumerate(model.layers):  # type: ignore[arg-type]
        for name, parameter in layer.named_parameters():
            first = owner.setdefault(id(parameter), number)
            if first != number:
                raise MixwellError(f"parallel: shard=true, and layers {first} and {number} share {name}; train without "
                                   "shard, or choose a router that shares nothing.")


def _twin(model: nn.Module) -> nn.Module:
    """A copy that reads the same numbers from the same memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _return_memory() -> None:
    """Have large blocks go back to the system when they are freed, where the C library can be told so.

    Layers are gathered and let go all the time, and what a heap keeps between them is as much as sharding saves.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def _parts(model: nn.Module) -> Iterator[FSDPModule]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            yield module


def _watch_outputs() -> None:
    """Let torch see the tensors in what layers are given and give back: by any of them a backward pass may begin."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about views, which nobody changes in place
    for kind in (Context, Routing):
        if kind not in trees.SUPPORTED_NODES:
            trees.register_pytree_node(kind, _flat, _raised, serialized_type_name=f"mixwell.{kind.__name__}")


def _flat(value: Any) -> tuple[list[Any], Any]:
    fields = vars(value)
    return list(fields.values()), (type(value), tuple(fields))


def _raised(values: Any, about: Any) -> Any:
    kind, names = about
    made = object.__new__(kind)
    made.__dict__.update(zip(names, values))
    return made
