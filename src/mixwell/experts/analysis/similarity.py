"""Similarity of experts, and whether the router's rows mirror it.

**Equation:** S^W_ij = cos(vec W^i, vec W^j) for W in gate, up, down;  S^router_ij = cos(g_i, g_j) of router rows;
    agreement = Pearson correlation of S^router and S^W over i < j.
    neurons: S^W_ij averages, over the neurons of i and j in the same place, the cosines of their vectors.
**Shapes:** gate_up [E, 2 F, D], down [E, D, F], router [E, D] -> lists of E x E.
**Reference:** Lo et al. 2024 (2406.18219), sections 4.1 and 4.2.
**Differs:** the paper also aligns neurons by the best permutation; here they are compared in place.
**Fails when:** experts were copied and have hardly moved: everything is near 1 and the correlation is of the remainder.
**Cost:** O(E^2 F D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.analysis._parts import mean_off_diagonal, pearson


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the similarity."""

    level: Literal["matrix", "neurons"] = "matrix"  # whole weight matrices, or neuron by neuron


def cosines(rows_ED: Tensor) -> Tensor:
    """Cosine of every pair of rows [E, E]; 0 with a row of zeros."""
    unit = F.normalize(rows_ED.detach().double(), dim=-1)
    return unit @ unit.T


def expert_cosines(weights_EFD: Tensor, config: Config) -> Tensor:
    """Cosine of every pair of experts [E, E], by a weight with a row for each neuron."""
    if config.level == "matrix":
        return cosines(weights_EFD.flatten(1))
    unit = F.normalize(weights_EFD.detach().double(), dim=-1)
    return torch.einsum("ifd,jfd->ij", unit, unit) / weights_EFD.shape[1]


def _of(matrix: Tensor) -> dict[str, Any]:
    return {"matrix": matrix.tolist(), "mean": mean_off_diagonal(matrix)}


@method(
    title="Expert and router similarity",
    paper="A Closer Look into Mixture-of-Experts in Large Language Models",
    year=2024,
    tags={"weights"},
)
def similarity(gate_up_EFD: Tensor, down_EDF: Tensor, config: Config, context: Context,
               router_ED: Tensor | None = None) -> dict[str, Any]:
    """For gate, up, down (and router): matrix (E x E), mean off its diagonal, agreement with the router (or None)."""
    gate, up = gate_up_EFD.chunk(2, dim=1)
    down = down_EDF.transpose(1, 2)
    router = None if router_ED is None else cosines(router_ED)
    experts = len(gate)
    upper = torch.triu_indices(experts, experts, 1, device=gate.device).unbind()
    result: dict[str, Any] = {}
    for name, weights in (("gate", gate), ("up", up), ("down", down)):
        matrix = expert_cosines(weights, config)
        agreement = None if router is None else pearson(matrix[upper], router[upper])
        result[name] = {**_of(matrix), "router_agreement": agreement}
    if router is not None:
        result["router"] = _of(router)
    return result


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four experts of width six and hidden width five, with their router."""
    gate_up_EFD = torch.randn(4, 10, 6, generator=generator)
    down_EDF = torch.randn(4, 6, 5, generator=generator)
    router_ED = torch.randn(4, 6, generator=generator)
    return {"gate_up_EFD": gate_up_EFD, "down_EDF": down_EDF, "config": Config(), "context": Context(),
            "router_ED": router_ED}
