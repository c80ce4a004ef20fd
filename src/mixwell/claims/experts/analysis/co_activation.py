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

from mixwell.claims._methods import call
from mixwell.claims._series import columns
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import Seen, block, from_trunk, probe
from mixwell.core.rng import generator
from mixwell.core.routing import Routing

NEURONS, ACTIVE, GROUPS = 128, 16, 8


def together(activity_TF: Tensor) -> Tensor:
    """How often two neurons are among a token's most active ones [F, F], without the diagonal."""
    indices = activity_TF.topk(ACTIVE, dim=-1).indices
    weights = torch.ones_like(indices, dtype=torch.float32)
    routing = Routing(indices, weights, activity_TF)
    found = call("experts.analysis.co_activation", routing)
    counts = torch.tensor(found["counts"], dtype=torch.float64)
    own = counts.diag()
    return counts - own.diag()


def beyond_chance(counts_FF: Tensor) -> Tensor:
    """Newman's modularity matrix: shares of co-activation less the product of the neurons' shares."""
    shares = counts_FF / counts_FF.sum()
    row, column = shares.sum(0, keepdim=True), shares.sum(1, keepdim=True)
    return shares - row * column


def find_groups(matrix_FF: Tensor, draws: torch.Generator) -> Tensor:
    """A group for each neuron [F], by Lloyd's algorithm on the leading eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix_FF)
    largest = values[-GROUPS:].clamp_min(0)
    points = vectors[:, -GROUPS:] * largest.sqrt()
    order = torch.randperm(NEURONS, generator=draws)
    centres = points[order[:GROUPS]]
    for _ in range(50):
        groups = torch.cdist(points, centres).argmin(1)
        centres = moved(centres, points, groups)
    return groups


def moved(centres: Tensor, points: Tensor, groups: Tensor) -> Tensor:
    """Every centre at the mean of its points; one without points stays."""
    found = []
    for g, centre in enumerate(centres):
        own = points[groups == g]
        found.append(own.mean(0) if len(own) else centre)
    return torch.stack(found)


def modularity(matrix_FF: Tensor, groups_F: Tensor) -> float:
    """Share of co-activations inside groups beyond chance."""
    same_FF = groups_F.unsqueeze(0) == groups_F.unsqueeze(1)
    return float(matrix_FF[same_FF].sum())


def measure(seen: Seen, seed: int) -> tuple[float, float]:
    """(modularity of the groups found, of random groups) on the half they were not found on."""
    weight = seen.mixer.gate_up_proj.float()
    hidden = seen.hidden_TD.float() @ weight.T
    gate, up = hidden.chunk(2, -1)
    activity = (torch.nn.functional.silu(gate) * up).abs()
    draws = generator(seed, "groups")
    order = torch.randperm(len(activity), generator=draws)
    halves = activity[order].chunk(2)
    first, second = (beyond_chance(together(half)) for half in halves)
    groups = find_groups(first, draws)
    other = torch.randperm(NEURONS, generator=draws)
    shuffled = groups[other]
    return modularity(second, groups), modularity(second, shuffled)


CLAIM = Claim("Neurons of a dense block form groups that are active together.",
              "modularity of neuron co-activation on text not used to find the groups", lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Modularity of the groups found against random ones, mean over layers."""
    trained = from_trunk(bench, seed, mixer=block(NEURONS))
    layers = probe(bench, trained.model)
    measured = [measure(seen, seed) for seen in layers]
    found, random = columns(measured)
    ours = statistics.fmean(found)
    theirs = statistics.fmean(random)
    return {"method": ours, "baseline": theirs}
