"""Partition merging: a candidate data set is judged by the average of models trained on its parts.

**Equation:** theta_p = train(theta_0, D_p), the same tokens for each p; theta_S = (1 / |S|) sum_{p in S} theta_p; the
    score of S is the loss of theta_S. P trainings serve 2^P candidates.
**Shapes:** state dicts of one architecture, by name of the partition.
**Reference:** Na et al. 2024 (2410.15661).
**Differs:** none in the average: uniform, floating-point entries alone, others from the first partition. Training and
    scoring are the user's; averages are accumulated in float32 at least.
**Fails when:** branches left the basin: they must share theta_0 and a small learning rate. Absolute losses are worse
    than those of a model trained on the union; their order is what counts.
**Cost:** O(|S| parameters) a candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which partitions; `ValueError` where there is none, or one twice."""

    partitions: tuple[str, ...]

    def __post_init__(self) -> None:
        given = self.partitions
        if not given or len(set(given)) < len(given):
            raise ValueError(f"partitions are {given}; expected at least one, and each once")


@method(title="Partition merging", year=2024,
        paper="Scalable Data Ablation Approximations for Language Models through Modular Training and Merging")
def partition_merge(states: Mapping[str, StateDict], config: Config) -> dict[str, Tensor]:
    """The average of some partitions' models; unknown partitions and unlike models raise `MixwellError`."""
    chosen = [_known(states, name) for name in config.partitions]
    first = chosen[0]
    expected = _form(first)
    for partition, other in zip(config.partitions, chosen):
        if _form(other) != expected:
            against = config.partitions[0]
            raise MixwellError(f"the model of {partition!r} has other tensors than that of {against!r}; expected "
                               "branches of one model.")
    merged = {}
    for name in first:
        alike = [state[name] for state in chosen]
        merged[name] = _mean(alike)
    return merged


def _known(states: Mapping[str, StateDict], name: str) -> StateDict:
    if name not in states:
        raise MixwellError(f"no partition {name!r}; there are {', '.join(states)}.")
    return states[name]


def _form(state: StateDict) -> dict[str, tuple[Any, ...]]:
    """Shape and type of every tensor."""
    found = {}
    for name, tensor in state.items():
        found[name] = (tensor.shape, tensor.dtype)
    return found


def _mean(tensors: list[Tensor]) -> Tensor:
    """Of floating-point tensors; of others the first."""
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros_like(first, dtype=wide)
    for tensor in tensors:
        total += tensor
    mean = total / len(tensors)
    return mean.to(first.dtype)


def subsets(names: tuple[str, ...], least: int = 1, most: int | None = None) -> Iterator[tuple[str, ...]]:
    """Every candidate of some size, small ones first."""
    most = len(names) if most is None else most
    for size in range(least, most + 1):
        yield from itertools.combinations(names, size)


def ranked(states: Mapping[str, StateDict], candidates: list[tuple[str, ...]],
           loss: Callable[[StateDict], float]) -> list[tuple[float, tuple[str, ...]]]:
    """Candidates with the loss of their average, the best first."""
    found = []
    for names in candidates:
        merged = partition_merge(states, Config(partitions=names))
        found.append((loss(merged), names))
    return sorted(found)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three branches of a matrix and a counter."""
    states = {}
    for name in ("code", "docs", "prose"):
        weight = torch.randn(3, 2, generator=generator)
        states[name] = {"weight": weight, "steps": torch.tensor(7)}
    return {"states": states, "config": Config(partitions=("code", "prose"))}
