"""Mixture of prompts: demonstrations in clusters, each with its own instruction; a query goes to the nearest.

**Equation:** k-means of the demonstrations' embeddings for k = 2..`most`, k = argmin inertia_k / inertia_1 +
    `penalty` k; an expert has `demos` of its cluster, drawn from a larger one, a smaller one repeated;
    instructions: proposed from the demonstrations of all other experts, the `candidates` best by score without
    demonstrations, and the empty one; an expert takes the one that scores best with its demonstrations on the
    `queries` whose embeddings are nearest by cosine to them. A query goes to the centre nearest in distance.
**Shapes:** embeddings [N, D] of demonstrations, [Q, D] of queries; centres [K, D].
**Reference:** Wang et al. 2024, One Prompt is not Enough (2407.00256), and its released code.
**Differs:** the language model is handed in as `propose` and `score`. `most` 1 gives the single prompt, and the best of
    several equal scores is the first, where there one that scores 0 leaves no instruction at all.
**Fails when:** the task is one everywhere: then clusters only keep demonstrations apart.
**Cost:** `most` k-means; `proposals` proposals, as many scores, and k (`candidates` + 1) scores on `queries` queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least, check_not_negative

Propose = Callable[[list[int]], Any]  # places of demonstrations -> an instruction
Score = Callable[[Any, list[int], list[int]], float]  # instruction or None, demonstrations, queries -> how good
SEEN = 5  # demonstrations that a proposal is made from, at most


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a mixture of prompts."""

    most: int = 10  # experts, at most; 1: one prompt
    penalty: float = 0.02  # of another expert, as a share of the inertia of one
    demos: int = 5  # demonstrations of an expert
    proposals: int = 20  # instructions proposed, in sum over experts
    candidates: int = 4  # of them that are tried with each expert
    queries: int = 20  # that an expert's instruction is chosen on

    def __post_init__(self) -> None:
        check_least(self, most=1, demos=1, proposals=0, candidates=0, queries=1)
        check_not_negative(self, "penalty")


class Mixture(NamedTuple):
    """Experts: their centres [K, D], places of their demonstrations [K, m], and their instructions (None: empty)."""

    centres_KD: Tensor
    demos_Km: Tensor
    instructions: list[Any]

    def expert_of(self, embeddings_QD: Tensor) -> Tensor:
        """The expert of each query, int64 [Q]."""
        return torch.cdist(embeddings_QD, self.centres_KD).argmin(1)


def clusters(embeddings_ND: Tensor, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(cluster of each demonstration [N], centres [K, D]), as many as the penalty allows."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    found = []
    most = min(config.most, len(embeddings_ND))
    rows = embeddings_ND.double().numpy()
    with threadpool_limits(1):
        for k in range(1, most + 1):
            seed = int(torch.randint(2**31, (), generator=generator))
            found.append(KMeans(k, n_init=10, random_state=seed).fit(rows))
    whole = found[0].inertia_ or 1.0
    several = found[1:] or found
    costs = [fit.inertia_ / whole + config.penalty * fit.n_clusters for fit in several]
    best = several[costs.index(min(costs))]
    cluster_N = torch.from_numpy(best.labels_).long()
    centres_KD = torch.from_numpy(best.cluster_centers_).to(embeddings_ND.dtype)
    return cluster_N, centres_KD


def members(cluster_N: Tensor, expert: int, count: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """(the demonstrations of an expert, those of its cluster that are left out)."""
    places = (cluster_N == expert).nonzero().squeeze(1)
    order = torch.randperm(len(places), generator=generator)
    mixed = places[order].tolist()
    repeated = mixed * (count // len(mixed) + 1)
    return repeated[:count], mixed[count:]


@method(
    title="Mixture of prompts",
    paper="One Prompt is not Enough: Automated Construction of a Mixture-of-Expert Prompts",
    year=2024,
)
def prompts(embeddings_ND: Tensor, queries_QD: Tensor, config: Config, generator: torch.Generator, *,
            propose: Propose, score: Score) -> Mixture:
    """Experts for these demonstrations, their instructions chosen on these queries.

    Raises `MixwellError` for embeddings that are missing, not finite, or of two widths.
    """
    _check(embeddings_ND, queries_QD)
    cluster_N, centres_KD = clusters(embeddings_ND, config, generator)
    experts = range(len(centres_KD))
    parts = [members(cluster_N, expert, config.demos, generator) for expert in experts]
    tried = _candidates(parts, len(queries_QD), config, generator, propose, score)
    chosen = []
    for own, _ in parts:
        near = nearest(embeddings_ND[own], queries_QD, config.queries)
        scores = [score(instruction, own, near) for instruction in tried]
        best = scores.index(max(scores))
        chosen.append(tried[best])
    demos_Km = torch.tensor([own for own, _ in parts])
    return Mixture(centres_KD, demos_Km, chosen)


def nearest(own_mD: Tensor, queries_QD: Tensor, count: int) -> list[int]:
    """The queries most like one of an expert's demonstrations, by cosine."""
    own = F.normalize(own_mD, dim=1)
    others = F.normalize(queries_QD, dim=1)
    likeness = others @ own.T
    order = likeness.amax(1).argsort(descending=True, stable=True)
    return order[:count].tolist()


def _candidates(parts: Sequence[tuple[list[int], list[int]]], queries: int, config: Config,
                generator: torch.Generator, propose: Propose, score: Score) -> list[Any]:
    """The empty instruction, and the best of those proposed from what is not an expert's."""
    proposed: list[Any] = []
    each = config.proposals // len(parts)
    for expert in range(len(parts)):
        pool = _others(parts, expert)
        for _ in range(each):
            order = torch.randperm(len(pool), generator=generator)[:SEEN]
            proposed.append(propose([pool[place] for place in order.tolist()]))
    every = list(range(queries))
    scores = torch.tensor([score(one, [], every) for one in proposed])
    best = scores.argsort(descending=True, stable=True)[: config.candidates]
    return [None, *(proposed[place] for place in best.tolist())]


def _others(parts: Sequence[tuple[list[int], list[int]]], expert: int) -> list[int]:
    """Places of the other experts' demonstrations and of those left out everywhere; an only expert's own."""
    found: list[int] = []
    for place, (own, rest) in enumerate(parts):
        found += rest
        if place != expert or len(parts) == 1:
            found += dict.fromkeys(own)
    return found


def _check(embeddings_ND: Tensor, queries_QD: Tensor) -> None:
    for name, rows in (("demonstrations", embeddings_ND), ("queries", queries_QD)):
        if rows.ndim != 2 or not len(rows) or not bool(rows.isfinite().all()):
            raise MixwellError(f"embeddings of {name} have the shape {tuple(rows.shape)}; expected finite rows, one at "
                               "least.")
    first, second = embeddings_ND.shape[1], queries_QD.shape[1]
    if first != second:
        raise MixwellError(f"demonstrations are embedded in {first} numbers and queries in {second}; expected as many.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve demonstrations in two heaps; an instruction is a number, good where it is near its first demonstration."""
    embeddings_ND = torch.randn(12, 2, generator=generator)
    embeddings_ND[6:] += 9
    near_QD = embeddings_ND[::2]
    queries_QD = near_QD + 0.1
    return {"embeddings_ND": embeddings_ND, "queries_QD": queries_QD, "config": Config(most=3, demos=3, proposals=4),
            "generator": generator, "propose": sum, "score": _closeness}


def _closeness(instruction: Any, demos: list[int], queries: list[int]) -> float:
    wanted = sum(demos[:1])
    said = instruction or 0
    return -abs(said - wanted)
