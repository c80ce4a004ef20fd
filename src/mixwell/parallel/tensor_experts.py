"""Experts cut in slices as well as spread: what several workers hold of the same tokens travels once.

**Equation:** G = Gt Ge workers. The Gt workers of a tensor group hold the same tokens and, of each expert, a slice of
    the hidden units; the Ge workers of an expert group hold different experts. Tokens are sorted by expert; each tensor
    rank drops all but its share of them, the shares travel to the experts (all-to-all over the expert group), and there
    the tensor group puts them together again (all-gather). Slices give partial results that are summed:
    E(x) = sum_g W_down[:, g] act(W_up[g, :] x). The way back is the same.
    Backward, a drop is a gather and a gather a drop.
**Shapes:** rows [N, D] sorted by expert and counts [E] on each worker, equal in a tensor group; up [L, F / Gt, D] and
    down [L, D, F / Gt] of the L = E / Ge own experts.
**Reference:** Singh et al. 2023 (2303.06318), section 5.1, duplicate token dropping; DeepSpeed's `moe/mappings.py`.
**Differs:** rows are dropless, of any number for each expert: shares are cut expert by expert, of unequal sizes where
    Gt does not divide a count, where the code narrows a padded buffer. The optimiser's tiles and the cache of
    collectives for recomputation are left out: the one is torch's fused step, the other `checkpointing` of training.
**Fails when:** both groups lie on links of equal speed: what is saved on one is sent on the other.
**Cost:** 2 (Ge - 1) / Ge N D / Gt elements between expert workers, and (Gt - 1) N D in each of two gathers and one sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.parallel.moves import there_and_back
from mixwell.parallel.wire import ThreadWire, Wire, in_threads


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of sliced experts."""

    tensor: int = 2  # Gt: workers that hold the same tokens and slices of the same experts
    expert: int = 2  # Ge: workers that hold different experts
    drop_duplicates: bool = True  # send each token once for a tensor group, and not once for each of its workers

    def __post_init__(self) -> None:
        check_least(self, tensor=1, expert=1)


class Mesh(NamedTuple):
    """A worker's wires."""

    tensor: Wire  # to those with the same tokens
    expert: Wire  # to those with other experts


class _Sum(torch.autograd.Function):
    """Sum of partial results; every worker goes on with all of it, so that its gradient is whole already."""

    @staticmethod
    def forward(ctx, rows: Tensor, wire: Wire) -> Tensor:
        return wire.total(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad, None


class _Same(torch.autograd.Function):
    """Nothing forward; backward the partial gradients of the workers are summed."""

    @staticmethod
    def forward(ctx, rows: Tensor, wire: Wire) -> Tensor:
        ctx.wire = wire
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return ctx.wire.total(grad), None


class _Drop(torch.autograd.Function):
    """The own rows of those that all hold; backward they are gathered again."""

    @staticmethod
    def forward(ctx, rows: Tensor, wire: Wire, own: list[Tensor]) -> Tensor:
        ctx.wire, ctx.own = wire, own
        return rows[own[wire.rank]]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return _gathered(grad, ctx.wire, ctx.own), None, None


class _Gather(torch.autograd.Function):
    """The rows of all workers in their places; backward each keeps its own."""

    @staticmethod
    def forward(ctx, rows: Tensor, wire: Wire, own: list[Tensor]) -> Tensor:
        ctx.mine = own[wire.rank]
        return _gathered(rows, wire, own)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad[ctx.mine], None, None


def _gathered(rows: Tensor, wire: Wire, own: list[Tensor]) -> Tensor:
    """Rows of all workers, of unequal numbers, at the places that `own` gives them."""
    counts = [len(mine) for mine in own]
    sent = [len(rows)] * wire.size
    for_all = torch.cat([rows] * wire.size)
    came = wire.exchange(for_all, sent, counts)
    found = torch.empty_like(came)
    places = torch.cat(own)
    found[places] = came
    return found


def shares(counts_E: Tensor, parts: int) -> list[Tensor]:
    """The rows of each of `parts` workers among rows sorted by expert: of each expert an even part."""
    total = int(counts_E.sum())
    of_experts = torch.arange(total).split(counts_E.tolist())
    cut = [rows.tensor_split(parts) for rows in of_experts]
    return [torch.cat(own) for own in zip(*cut)]


def sliced(rows_ND: Tensor, counts_E: Tensor, up_LHD: Tensor, down_LDH: Tensor, mesh: Mesh,
           config: Config) -> Tensor:
    """Rows sorted by expert through experts that are spread over one group and sliced over the other: [N, D]."""
    group = mesh.tensor

    def computed(rows_MD: Tensor, counts_WL: Tensor) -> Tensor:
        return _computed(rows_MD, counts_WL, up_LHD, down_LDH, group)

    def of_the_group(rows_MD: Tensor, counts_WL: Tensor) -> Tensor:
        """The rows of the whole tensor group, and of the result the own ones."""
        held = group.gather(counts_WL)
        places = _places(held)
        whole = _Gather.apply(rows_MD, group, places)
        counts = torch.stack(held)
        done = computed(whole, counts.sum(0))
        return _Drop.apply(done, group, places)

    if not config.drop_duplicates:
        return there_and_back(rows_ND, counts_E, mesh.expert, computed)
    own = shares(counts_E, group.size)
    mine = own[group.rank]
    mine_ND = _Drop.apply(rows_ND, group, own)
    done_ND = there_and_back(mine_ND, _counted(mine, counts_E), mesh.expert, of_the_group)
    return _Gather.apply(done_ND, group, own)


def _counted(rows: Tensor, counts_E: Tensor) -> Tensor:
    """How many of `rows` belong to each expert [E]."""
    ends_E = counts_E.cumsum(0)
    experts = torch.bucketize(rows, ends_E, right=True)
    return torch.bincount(experts, minlength=len(counts_E))


def _places(held: list[Tensor]) -> list[Tensor]:
    """Where the rows of each tensor rank, by worker and expert, stand among those of all, by worker and expert."""
    labels = []
    for counts_WL in held:
        counts = counts_WL.flatten()
        slots = torch.arange(len(counts))
        labels.append(slots.repeat_interleave(counts))
    order = torch.cat(labels).argsort(stable=True)
    sizes = [len(own) for own in labels]
    return list(order.argsort().split(sizes))


def _computed(rows_MD: Tensor, counts_WL: Tensor, up_LHD: Tensor, down_LDH: Tensor, wire: Wire) -> Tensor:
    """Rows by worker and expert through the own slices of the experts, the partial results summed."""
    rows_MD = _Same.apply(rows_MD, wire)
    counts = counts_WL.flatten().tolist()
    slices = list(zip(up_LHD, down_LDH)) * len(counts_WL)  # in the order in which the rows come
    done = []
    for part, (up_HD, down_DH) in zip(rows_MD.split(counts), slices):
        hidden = gelu(part @ up_HD.mT)
        done.append(hidden @ down_DH.mT)
    return _Sum.apply(torch.cat(done), wire)


@method(
    title="Sliced experts without duplicate tokens",
    paper="A Hybrid Tensor-Expert-Data Parallelism Approach to Optimize Mixture-of-Experts Training",
    year=2023,
)
def tensor_experts(rows_WND: Tensor, counts_WE: Tensor, up_EFD: Tensor, down_EDF: Tensor, config: Config) -> Tensor:
    """Rows of each expert worker through GELU experts, with all workers as threads: [W, N, D]."""
    tensor, expert = config.tensor, config.expert
    if len(rows_WND) != expert:
        raise ValueError(f"rows of {len(rows_WND)} workers; expected {expert}, as in the config")
    check_slices(up_EFD, config)

    def work(wire: ThreadWire) -> Tensor:
        mesh = mesh_of(wire, config)
        up, down = own_slices(wire.rank, up_EFD, down_EDF, config)
        group = wire.rank // tensor
        return sliced(rows_WND[group], counts_WE[group], up, down, mesh, config)

    found = in_threads(tensor * expert, work)
    return torch.stack(found[::tensor])


def check_slices(up_EFD: Tensor, config: Config) -> None:
    """Raise `ValueError` for experts that the workers cannot share out evenly."""
    experts, hidden, _ = up_EFD.shape
    if experts % config.expert or hidden % config.tensor:
        raise ValueError(f"{experts} experts of {hidden} hidden units over {config.expert} times {config.tensor} "
                         "workers; expected numbers that divide them")


def mesh_of(wire: ThreadWire, config: Config) -> Mesh:
    """The wires of a worker among threads: neighbours hold the same tokens."""
    tensor = config.tensor
    group, rank = divmod(wire.rank, tensor)
    first = group * tensor
    same_tokens = range(first, first + tensor)
    other_experts = range(rank, wire.size, tensor)
    return Mesh(wire.sub(same_tokens), wire.sub(other_experts))


def own_slices(rank: int, up_EFD: Tensor, down_EDF: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """A worker's slices of its experts."""
    group, part = divmod(rank, config.tensor)
    up_LFD = up_EFD.chunk(config.expert)[group]
    down_LDF = down_EDF.chunk(config.expert)[group]
    up_slices = up_LFD.chunk(config.tensor, dim=1)
    down_slices = down_LDF.chunk(config.tensor, dim=2)
    return up_slices[part], down_slices[part]


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two expert workers with seven rows each over four experts, each cut in two."""
    rows = torch.randn(2, 7, 3, generator=generator)
    counts = torch.tensor([[3, 0, 3, 1], [1, 0, 0, 6]])
    up = torch.randn(4, 6, 3, generator=generator)
    down = torch.randn(4, 3, 6, generator=generator)
    return {"rows_WND": rows, "counts_WE": counts, "up_EFD": up, "down_EDF": down, "config": Config()}
