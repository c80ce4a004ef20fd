"""Evict, then merge: what matters little goes, what matters more is taken into its nearest neighbour, head by head.

**Equation:** with A the prompt's weights, g_j = sum_i A_ij / (queries that see j), l_j = mean over the last w queries
    of A_ij, and s = (1 - lambda) g + lambda l. Of the positions before the last w the m = ceil(spare (b - w)) with the
    largest s are candidates, the others go. The best b - w are centres; every other candidate joins the centre whose
    key has the largest cosine with its own where that is above tau, else it goes, too:
        k_c = sum_j s_j k_j / sum_j s_j over the centre and those that joined it, v_c alike.
    tau of a head: the `tau` quantile of these largest cosines, so that redundant heads ask for more.
**Shapes:** keys and values [B, G, S, P]; s [B, G, S].
**Reference:** Li et al. 2024, EMS (2412.08521), from its abstract.
**Differs:** equations as recalled: there is no released code. Keys are compared and merged as they are turned by their
    positions. A centre counts as one position, whatever joined it.
**Fails when:** a window alone does as well; budgets so large that nothing has to join.
**Cost:** b positions and those of the answer; m (b - w) P products a head, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.keeping.rules import Kept, Rule


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of evicting and merging."""

    budget: int = 256  # b, positions of the prompt that stay
    recent: int = 32  # w, of these the last ones, whose queries count in the local score
    local: float = 0.5  # lambda, 0 to 1
    spare: float = 1.5  # candidates for each centre, 1 or more; 1 evicts only
    tau: float = 0.5  # quantile of the largest cosines below which a candidate goes, 0 to 1

    def __post_init__(self) -> None:
        check_least(self, recent=1, spare=1)
        if self.budget <= self.recent:
            raise ValueError(f"budget is {self.budget}; expected more than recent, {self.recent}")
        for name in ("local", "tau"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected 0 to 1")


def scores(weights_BGTS: Tensor, recent: int, local: float) -> Tensor:
    """s [B, G, S] of a prompt's weights, T = S."""
    S = weights_BGTS.shape[-1]
    seen_by_S = torch.arange(S, 0, -1, device=weights_BGTS.device)
    everywhere = weights_BGTS.sum(2) / seen_by_S
    lately = weights_BGTS[:, :, -recent:].mean(2)
    return (1 - local) * everywhere + local * lately


def joined(centres: Kept, centre_scores: Tensor, others: Kept, other_scores: Tensor, tau: float) -> Kept:
    """The centres [B, G, C, P] with those of the others [B, G, M, P] that join them."""
    directions = F.normalize(others.keys, dim=-1)
    towards = F.normalize(centres.keys, dim=-1)
    cosines_BGMC = directions @ towards.transpose(2, 3)
    near = cosines_BGMC.max(-1)
    limit = near.values.quantile(tau, dim=-1, keepdim=True)
    weight_BGM = other_scores * (near.values >= limit)
    total = centre_scores.scatter_add(2, near.indices, weight_BGM)
    parts = [_weighed(own, centre_scores, more, weight_BGM, near.indices) for own, more in zip(centres, others)]
    keys, values = (part / total.clamp_min(1e-30).unsqueeze(-1) for part in parts)
    return Kept(keys, values)


def _weighed(own_BGCP: Tensor, own_scores: Tensor, more_BGMP: Tensor, more_scores: Tensor, into_BGM: Tensor) -> Tensor:
    """Sums by score over each centre and those that join it."""
    own_weights = own_scores.unsqueeze(-1)
    more_weights = more_scores.unsqueeze(-1)
    start = own_BGCP * own_weights
    added = more_BGMP * more_weights
    into = into_BGM.unsqueeze(-1)
    index = into.expand_as(added)
    return start.scatter_add(2, index, added)


@method(title="Evict, then merge",
        paper="EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local "
        "Importance", year=2024)
class EvictThenMerge(Rule):
    """Keeps centres, into which candidates are merged."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """The centres of the prompt and its last positions."""
        config = self.config
        B, G, S, _ = kept.keys.shape
        count = config.budget - config.recent
        before = S - config.recent
        if before <= count:
            return kept
        scores_BGS = scores(weights_BGTS, config.recent, config.local)
        most = min(before, math.ceil(config.spare * count))
        best = scores_BGS[..., :before].topk(most)
        centres, others = best.indices.split([count, most - count], -1)
        merged = kept.at(centres)
        if most > count:
            own, more = best.values.split([count, most - count], -1)
            merged = joined(merged, own, kept.at(others), more, config.tau)
        last = kept.at(torch.arange(before, S).expand(B, G, -1))
        return Kept(torch.cat([merged.keys, last.keys], 2), torch.cat([merged.values, last.values], 2))

    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """All of the answer stays."""
        return kept


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five positions, two of them the last ones."""
    return {"config": Config(budget=5, recent=2)}
