"""Influence-guided augmentation of tensors: cells are added where entities influence how well held-out cells are told.

**Equation:** yhat(c) = MLP(embeddings of c's entities, side by side); g_e(c) = (yhat - y) h(c) in epoch e, h the last
    hidden layer; I(c) = sum_{e <= best} g_e(c) . sum_{v held out} g_e(v), over its largest; alpha_n[i] is in proportion
    to sum over c with c_n = i of |I(c)|. New cells draw each mode's entity from alpha_n, apart from the others; their
    values are what the first network tells. A fresh network learns from both.
**Shapes:** cells [C, M] of M modes, values [C]; new cells [A, M], values [A].
**Reference:** Oh et al. 2021 (2107.11513), DAIN; the released code.
**Differs:** as the code, entities that repeat cells stay, held-out traces are those before an epoch's steps and the
    others those during it. The rate that scales a trace is left out, as there.
**Fails when:** the first network is no better than a mean: new values hand on its errors. Most of the gain over none is
    often had by even draws (`guided = False`), which learn from the same network.
**Cost:** one training, and for each epoch O(C H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.compact import drawn
from mixwell.mixing import check_above, check_below, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Network, its training, and how much is added; `ValueError` for a value out of range."""

    embedding: int = 50  # width of each mode's embedding, at least 1
    hidden: tuple[int, ...] = (1024, 1024, 128)  # layers, the last one's activations make the traces
    lr: float = 1e-3  # of Adam, above 0
    batch: int = 1024  # at least 1
    epochs: int = 50  # at most so many, at least 1
    patience: int = 10  # epochs without a better held-out error before training ends, at least 1
    held: float = 0.2  # share of the cells that is held out, above 0 and below 1
    added: float = 0.5  # new cells for each learned one, 0 or more
    guided: bool = True  # by influence; else every entity is drawn alike

    def __post_init__(self) -> None:
        check_least(self, embedding=1, batch=1, epochs=1, patience=1, added=0)
        check_above(self, lr=0, held=0)
        check_below(self, held=1)
        least = min(self.hidden, default=0)
        if least < 1:
            raise ValueError(f"hidden is {self.hidden}; expected at least one layer of 1 or more")


class Cells(NamedTuple):
    """Some cells of a tensor: an entity of every mode, from 0, and the value."""

    index_CM: Tensor
    value_C: Tensor

    def rows(self, places: Tensor) -> Cells:
        """Some of them."""
        return Cells(self.index_CM[places], self.value_C[places])


class Completion(nn.Module):
    """Values from entities."""

    def __init__(self, sizes: tuple[int, ...], config: Config, generator: torch.Generator) -> None:
        super().__init__()
        tables = []
        for size in sizes:
            table = torch.randn(size, config.embedding, generator=generator)
            tables.append(nn.Parameter(table))
        self.tables = nn.ParameterList(tables)
        layers: list[nn.Module] = []
        into = len(sizes) * config.embedding
        for width in config.hidden:
            layers += [drawn(nn.Linear, generator, into, width), nn.ReLU()]
            into = width
        self.layers = nn.Sequential(*layers)
        self.readout = drawn(nn.Linear, generator, into, 1)

    def hidden(self, index_CM: Tensor) -> Tensor:
        """h: the last hidden layer, [C, H]."""
        parts = [table[entity_C] for table, entity_C in zip(self.tables, index_CM.T)]
        return self.layers(torch.cat(parts, 1))

    def forward(self, index_CM: Tensor) -> Tensor:
        """Values [C]."""
        return self.readout(self.hidden(index_CM)).squeeze(1)


class Augmented(NamedTuple):
    """Learned and new cells together, the new ones last, and what each entity of each mode was drawn by."""

    cells: Tensor  # [C + A, M]
    values: Tensor  # [C + A]
    importance: Tensor  # [sum of the modes' sizes], of sum 1 in each mode


@method(title="Influence-guided augmentation of tensors (DAIN)", year=2021,
        paper="Influence-guided Data Augmentation for Neural Tensor Completion")
def tensor_augmentation(cells: Cells, sizes: tuple[int, ...], config: Config, generator: torch.Generator) -> Augmented:
    """The cells and new ones beside them; cells outside the sizes raise `MixwellError`."""
    check(cells, sizes)
    learned, held = split(cells, config.held, generator)
    network, influence_C = traced(learned, held, sizes, config, generator)
    scale = influence_C.max().clamp(min=1e-30)
    shares = importance(influence_C / scale, learned.index_CM, sizes)
    if not config.guided:
        shares = [torch.full_like(share, 1 / len(share)) for share in shares]
    count = round(config.added * len(learned.value_C))
    index_AM = new_cells(shares, count, generator)
    with torch.no_grad():
        value_A = network(index_AM)
    made = together(cells, Cells(index_AM, value_A))
    return Augmented(made.index_CM, made.value_C, torch.cat(shares))


def check(cells: Cells, sizes: tuple[int, ...]) -> None:
    """Raise `MixwellError` for cells that are none of a tensor of these sizes."""
    index, value = cells
    came, modes, count = tuple(index.shape), len(sizes), len(value)
    if came != (count, modes):
        raise MixwellError(f"cells of shape {came} came with {count} values for {modes} modes; expected a row of "
                           "entities for each value.")
    limit_M = torch.tensor(sizes)
    beyond = (index < 0) | (index >= limit_M)
    outside_C = beyond.any(1)
    if outside_C.any():
        cell = index[outside_C][0].tolist()
        whole = " x ".join(map(str, sizes))
        raise MixwellError(f"cell {cell} lies outside a tensor of {whole}.")
    if not torch.isfinite(value).all():
        raise MixwellError("a value is not finite.")


def split(cells: Cells, share: float, generator: torch.Generator) -> tuple[Cells, Cells]:
    """Cells to learn from, and at least one that is held out."""
    count = len(cells.value_C)
    out = round(share * count)
    out = max(1, out)
    if out >= count:
        raise MixwellError(f"{count} cells came; expected more than are held out.")
    order = torch.randperm(count, generator=generator)
    first, rest = order.split([out, count - out])
    return cells.rows(rest), cells.rows(first)


def traced(learned: Cells, held: Cells, sizes: tuple[int, ...], config: Config,
           generator: torch.Generator) -> tuple[Completion, Tensor]:
    """The network of its best epoch, and the influence of every learned cell up to it."""
    network = Completion(sizes, config, generator)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.lr)
    influence_C = torch.zeros(len(learned.value_C))
    best, since = torch.inf, 0
    for _ in range(config.epochs):
        wanted_H = traces(network, held)[0].sum(0)
        influence_C = influence_C + epoch(network, optimiser, learned, wanted_H, config, generator)
        error = square_error(network, held)
        since += 1
        if error < best:
            best, since = error, 0
            state = {name: value.clone() for name, value in network.state_dict().items()}
            kept_C = influence_C
        if since == config.patience:
            break
    if best == torch.inf:
        raise MixwellError(f"the network diverged; take an lr below {config.lr:g}.")
    network.load_state_dict(state)
    return network, kept_C


def epoch(network: Completion, optimiser: torch.optim.Optimizer, learned: Cells, wanted_H: Tensor, config: Config,
          generator: torch.Generator) -> Tensor:
    """One pass of training; the products of the cells' traces with `wanted_H`: [C]."""
    found_C = torch.zeros(len(learned.value_C))
    order = torch.randperm(len(learned.value_C), generator=generator)
    for places in order.split(config.batch):
        trace_BH, off_B = traces(network, learned.rows(places))
        found_C[places] = trace_BH @ wanted_H
        loss = off_B.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return found_C


def traces(network: Completion, cells: Cells) -> tuple[Tensor, Tensor]:
    """(yhat - y) h without a gradient [C, H], and yhat - y with one [C]."""
    hidden_CH = network.hidden(cells.index_CM)
    told_C = network.readout(hidden_CH).squeeze(1)
    off_C = told_C - cells.value_C
    trace_CH = off_C[:, None] * hidden_CH
    return trace_CH.detach(), off_C


@torch.no_grad()
def square_error(network: Completion, cells: Cells) -> float:
    """Mean square of what is told less what is."""
    off_C = network(cells.index_CM) - cells.value_C
    return off_C.square().mean().item()


def importance(influence_C: Tensor, index_CM: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """alpha of every mode, of sum 1: even where no cell has influence."""
    size_C = influence_C.abs()
    found = []
    for entity_C, size in zip(index_CM.T, sizes):
        total = torch.zeros(size).index_add(0, entity_C, size_C)
        if not total.sum() > 0:
            total = torch.ones(size)
        found.append(total / total.sum())
    return found


def new_cells(shares: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Entities of every mode, drawn apart: [count, M]."""
    if not count:
        return torch.zeros(0, len(shares), dtype=torch.int64)
    modes = [torch.multinomial(share, count, replacement=True, generator=generator) for share in shares]
    return torch.stack(modes, 1)


def fitted(cells: Cells, sizes: tuple[int, ...], config: Config, generator: torch.Generator,
           beside: Cells | None = None) -> Completion:
    """A network of the cells, and of new ones beside them, of which none is held out."""
    learned, held = split(cells, config.held, generator)
    if beside is not None:
        learned = together(learned, beside)
    network, _ = traced(learned, held, sizes, config, generator)
    return network


def together(one: Cells, other: Cells) -> Cells:
    """Both, one after the other."""
    index = torch.cat([one.index_CM, other.index_CM])
    value = torch.cat([one.value_C, other.value_C])
    return Cells(index, value)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixty cells of a tensor of 6 x 5 x 4 whose value is a sum over its modes."""
    sizes = (6, 5, 4)
    limits = torch.tensor(sizes)
    part = torch.rand(60, 3, generator=generator)
    scaled = limits * part
    index = scaled.long()
    value = index.sum(1) / 5.0
    cells = Cells(index, value)
    config = Config(embedding=4, hidden=(8, 6), epochs=3, batch=16)
    return {"cells": cells, "sizes": sizes, "config": config, "generator": generator}
