"""Cluster variance: experts of one cluster are preferred alike, and the best cluster stands out from the next.

**Equation:** C = mean_c var_{i in c} P_i * exp(-rho D);  D = first - second largest of mean_{i in c} P_i;
    L = N^2 C, with P the mean gate probabilities (over: batch), or the mean over tokens of the same C of p_t (token).
**Shapes:** scores [T, E], experts cluster by cluster -> scalar.
**Reference:** Xie et al. 2022, MoEC (2207.09094), section on expert clusters, and the authors' code, from which the
    form is taken (its coefficient type 1 is rho = 0, type 2 is rho = 1).
**Differs:** the code takes P as a sum over tokens, so that its loss grows with T^2; here P is a mean and N^2 makes it a
    relative variance. Variances are of the population (the sample's is not a number for a cluster of one). D compares
    the clusters themselves; the code sorts all experts first and compares their quantiles.
**Fails when:** clusters of one expert: the variance is 0 and nothing is left of the rule (a plain mixture).
**Cost:** O(T E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, kept, mean_scores


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the cluster variance."""

    clusters: int = 2  # clusters of E / clusters experts each, at least 1
    rho: float = 1.0  # how much the distance between clusters counts, 0 or more
    over: Literal["batch", "token"] = "batch"  # variance of the mean probabilities, or of each token's

    def __post_init__(self) -> None:
        clusters = self.clusters
        rho = self.rho
        if clusters < 1 or not rho >= 0:
            raise ValueError(f"clusters is {clusters} and rho is {rho}; expected at least 1, and 0 or more")


def spread(shares: Tensor, clusters: int, rho: float) -> Tensor:
    """mean_c var(shares in c) exp(-rho D) of shares [.., E]."""
    grouped = shares.unflatten(-1, (clusters, -1))
    within = grouped.var(-1, correction=0).mean(-1)
    if clusters == 1 or not rho:
        return within
    best, second = grouped.mean(-1).topk(2, dim=-1).values.unbind(-1)
    discount = (-rho * (best - second)).exp()
    return within * discount


@method(
    title="Cluster variance",
    paper="MoEC: Mixture of Expert Clusters",
    year=2022,
)
def cluster_variance(routing: Routing, config: Config, context: Context) -> Tensor:
    """N^2 times the variance inside clusters, discounted by the distance between them; a scalar, 0 or more.

    Raises `ValueError` where the experts do not divide into the clusters.
    """
    experts = routing.num_experts
    if experts % config.clusters:
        raise ValueError(f"{experts} experts do not divide into {config.clusters} clusters")
    if config.over == "batch":
        mean = mean_scores(routing, context)
        of_mean = spread(mean, config.clusters, config.rho)
        return experts**2 * of_mean
    scores = kept(routing.scores_TE, context)
    each = spread(scores, config.clusters, config.rho)
    tokens = max(len(scores), 1)
    return experts**2 * each.sum() / tokens


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts in two clusters, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
