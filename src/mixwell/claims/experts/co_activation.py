"""Modularity: the neurons of a trained dense block form groups that are active together.

Paper: Configurable Foundation Models: Building LLMs from a Modular Perspective; on the method co_activation, with
neurons in the place of experts.
Tried: the bench's language model with a dense block of 128 neurons a layer, each token choosing its 16 most active;
eight groups found on one half of held-out text, and their modularity on the other half (the share of co-activations
inside groups beyond what the neurons' frequencies give), against random groups of the same sizes. Against it: a
modularity that is no higher.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.language import TOKENS, Seen, dense, probe
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context, Routing

NEURONS, ACTIVE, GROUPS = 128, 16, 8


def together(activity_TF: Tensor) -> Tensor:
    """How often two neurons are among a token's most active ones [F, F], without the diagonal."""
    entry = registry.find("experts.analysis.co_activation")
    indices = activity_TF.topk(ACTIVE, dim=-1).indices
    routing = Routing(indices, torch.ones_like(indices, dtype=torch.float32), activity_TF)
    counts = torch.tensor(entry.load()(routing, entry.module().Config(), Context())["counts"], dtype=torch.float64)
    return counts - counts.diag().diag()


def beyond_chance(counts_FF: Tensor) -> Tensor:
    """Newman's modularity matrix: shares of co-activation less the product of the neurons' shares."""
    shares = counts_FF / counts_FF.sum()
    return shares - shares.sum(0, keepdim=True) * shares.sum(1, keepdim=True)


def find_groups(matrix_FF: Tensor, draws: torch.Generator) -> Tensor:
    """A group for each neuron [F], by Lloyd's algorithm on the leading eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix_FF)
    points = vectors[:, -GROUPS:] * values[-GROUPS:].clamp_min(0).sqrt()
    centres = points[torch.randperm(NEURONS, generator=draws)[:GROUPS]]
    for _ in range(50):
        groups = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[groups == g].mean(0) if bool((groups == g).any()) else centres[g]
                               for g in range(GROUPS)])
    return groups


def modularity(matrix_FF: Tensor, groups_F: Tensor) -> float:
    """Share of co-activations inside groups beyond chance."""
    return float(matrix_FF[groups_F.unsqueeze(0) == groups_F.unsqueeze(1)].sum())


def measure(seen: Seen, seed: int) -> tuple[float, float]:
    """(modularity of the groups found, of random groups) on the half they were not found on."""
    gate, up = (seen.hidden_TD.float() @ seen.mixer.gate_up_proj.float().T).chunk(2, -1)
    activity = (torch.nn.functional.silu(gate) * up).abs()
    draws = generator(seed, "groups")
    order = torch.randperm(len(activity), generator=draws)
    first, second = (beyond_chance(together(half)) for half in activity[order].chunk(2))
    groups = find_groups(first, draws)
    return modularity(second, groups), modularity(second, groups[torch.randperm(NEURONS, generator=draws)])


def claim(bench: Bench) -> Evidence:
    """Modularity of the groups found against random ones, mean over layers."""
    arch = dense(bench, NEURONS)
    found = [[measure(seen, seed) for seen in probe(bench, bench.train(arch, seed, tokens=TOKENS).model)]
             for seed in bench.seeds]
    method, baseline = ([statistics.fmean(layer[i] for layer in run) for run in found] for i in (0, 1))
    return weigh("Neurons of a dense block form groups that are active together.",
                 "modularity of neuron co-activation on text not used to find the groups", method, baseline,
                 lower_is_better=False)
