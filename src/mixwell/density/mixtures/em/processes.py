"""Rows spread over the processes of a torch.distributed group: what one process knows and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixwell.core.errors import MixwellError


class Alone:
    """One process, which holds all rows."""

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the processes."""
        return list(tensors)

    def first(self, tensor: Tensor) -> Tensor:
        """The first process's value."""
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block without collectives: where it fails in one process, all others raise, too."""
        yield


class Group(Alone):
    """Processes of `group` (None: all), each with rows of its own. Every process must make the same calls.

    `MixwellError` where torch.distributed is not initialised.
    """

    def __init__(self, group: Any) -> None:
        ready = dist.is_available() and dist.is_initialized()
        if not ready:
            raise MixwellError("torch.distributed is not initialised; call torch.distributed.init_process_group in "
                               "every process (torchrun starts them), or use fit.")
        self.group = group
        self.device = torch.device("cpu")
        if dist.get_backend(group) == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = [tensor.double().flatten() for tensor in tensors]
        joined = torch.cat(flat).to(self.device)
        dist.all_reduce(joined, group=self.group)
        sizes = [tensor.numel() for tensor in tensors]
        parts = joined.split(sizes)
        pairs = zip(parts, tensors)
        return [part.view(tensor.shape).to(tensor) for part, tensor in pairs]

    def first(self, tensor: Tensor) -> Tensor:
        shared = tensor.to(self.device, copy=True).contiguous()
        dist.broadcast(shared, group=self.group, group_src=0)
        return shared.to(tensor)

    @contextmanager
    def together(self) -> Iterator[None]:
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others would wait for ever
            failed = error
        number, size = dist.get_rank(self.group), dist.get_world_size(self.group)
        lost = torch.zeros(size, device=self.device)
        lost[number] = float(failed is not None)
        dist.all_reduce(lost, group=self.group)
        if failed is not None:
            raise failed
        if bool(lost.any()):
            raise MixwellError(f"process {int(lost.argmax())} of {size} could not use its rows; its own message says "
                               "why.")
