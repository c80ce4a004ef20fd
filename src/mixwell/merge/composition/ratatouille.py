"""Ratatouille: fine-tunes on other tasks are the starts of fine-tunes on this one, and their weights are averaged.

**Equation:** phi_k = tune(phi_0, task k); head = probe(phi_0, target), shared by all; w_k = tune((phi_k, head),
    target); w = mean_k w_k, or greedily those that do not lower the score on validation data. Fused: each start is a
    random convex mix of all phi_k.
**Shapes:** weights under one set of names.
**Reference:** Rame et al. 2022 (2212.10445), sections 3 and 4.1 ("fusing": Choshen et al. 2022, 2204.03044).
**Differs:** how a model is tuned is the caller's: `tune` does the probe of each start and the rest.
**Fails when:** the head is not shared, or an auxiliary task pulls its fine-tune into another basin.
**Cost:** one training a start; the average costs nothing to use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.merge._parts import combined

Tensors = Mapping[str, Tensor]
Tune = Callable[[Tensors, int], Tensors]  # (start, number of the run) -> tuned on the target
Score = Callable[[Tensors], float]  # on validation data, higher is better


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ratatouille."""

    runs: int = 8  # trainings on the target; starts are taken in turn
    select: Literal["all", "greedy"] = "all"
    fused: bool = False  # start from random mixes of the auxiliaries

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"runs is {self.runs}; expected 1 or more")


def mean(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """The plain mean of weights."""
    found = {}
    for name in models[0]:
        stacked = torch.stack([model[name] for model in models])
        found[name] = stacked.mean(0)
    return found


def mix(models: Sequence[Tensors], generator: torch.Generator) -> dict[str, Tensor]:
    """A random convex mix, its shares uniform on the simplex."""
    draws = torch.rand(len(models), generator=generator)
    logs = draws.log()
    shares = logs / logs.sum()
    return combined(models, shares.tolist())


def greedily(models: Sequence[Tensors], score: Score) -> dict[str, Tensor]:
    """The mean of those models, best first, that do not lower the score of the mean so far."""
    ordered = sorted(models, key=score, reverse=True)
    kept = [ordered[0]]
    best = score(kept[0])
    for model in ordered[1:]:
        found = score(mean([*kept, model]))
        if found >= best:
            kept, best = [*kept, model], found
    return mean(kept)


@method(title="Model ratatouille",
        paper="Model Ratatouille: Recycling Diverse Models for Out-of-Distribution Generalization", year=2023)
def ratatouille(auxiliaries: Sequence[Tensors], tune: Tune, config: Config, generator: torch.Generator,
                score: Score | None = None) -> dict[str, Tensor]:
    """Tune from the auxiliaries in turn, `runs` times, and average. score: of greedy selection."""
    if not auxiliaries:
        raise ValueError("no auxiliary model came; expected one or more")
    if config.select == "greedy" and score is None:
        raise ValueError("select is 'greedy'; give score, which tells how good a model is on validation data")
    turns = itertools.cycle(auxiliaries)
    tuned = []
    for run in range(config.runs):
        start = mix(auxiliaries, generator) if config.fused else next(turns)
        tuned.append(tune(start, run))
    if score is None or config.select == "all":
        return mean(tuned)
    return greedily(tuned, score)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two starts, and a tuning that goes half of the way to nothing."""
    auxiliaries = [{"w": torch.randn(3, generator=generator)} for _ in range(2)]
    return {"auxiliaries": auxiliaries, "tune": lambda start, run: {"w": start["w"] / 2}, "config": Config(runs=2),
            "generator": generator}
