"""Fast feedforward with load balance and a master leaf: more accurate at inference than the plain tree.

Paper: Enhancing Fast Feed Forward Networks with Load Balancing and a Master Leaf Node.
Tried: scikit-learn's digits, 64 pixels into a tree of eight leaves of width 8 whose first ten outputs are the scores;
hardening 3, balance at 0.01 and a master leaf of width 8, against the tree without both; accuracy on 597 test images
with one leaf each. Against it: an accuracy that is no higher, or no more leaves in use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._judging import provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._digits import accuracy, fitted, images
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

PLAIN: dict[str, Any] = {"hidden_dim": 8, "depth": 3}
BOTH: dict[str, Any] = {**PLAIN, "balance": {"switch": 0.01}, "master_dim": 8}


class Tree(nn.Module):
    """A tree as a classifier."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        super().__init__()
        entry = registry.find("fast_feedforward", "experts.layers")
        self.layer = entry.load()(64, entry.module().Config(**options), generator(seed, "tree"))
        with torch.no_grad():
            for name, parameter in self.layer.named_parameters():
                if name.endswith("_proj"):
                    parameter.mul_(parameter.shape[-1] ** -0.5 / 0.02)

    def forward(self, x_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """(scores of the digits [N, 10], auxiliary loss)."""
        mixed = self.layer(x_NHW.flatten(1), Context())
        return mixed.y_TD[:, :10], mixed.y_TD.new_zeros(()) if mixed.aux is None else mixed.aux


def measure(seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """(accuracy with hard choices, leaves in use)."""
    x, y, x_test, y_test = images(seed)
    tree = fitted(Tree(seed, options), x, y, seed, steps=1500)
    with torch.no_grad():
        leaves = tree.layer(x_test.flatten(1), Context()).routing.indices_TK.unique().numel()
    return accuracy(tree, x_test, y_test), float(leaves)


def claim(bench: Bench) -> Evidence:
    """Accuracy with balance and master leaf against without."""
    both, plain = ([measure(seed, options) for seed in bench.seeds] for options in (BOTH, PLAIN))
    evidence = weigh("Balance and a master leaf make the tree more accurate.", "accuracy on test images with one leaf",
                     [m[0] for m in both], [m[0] for m in plain], lower_is_better=False,
                     note="Hardening at 3 sends all images to one leaf with and without balance; what is gained with "
                          "one seed is the master leaf's.")
    ours, theirs = [m[1] for m in both], [m[1] for m in plain]
    return provided(evidence, sum(ours) > sum(theirs), "No more leaves are in use.", method_leaves=ours,
                    baseline_leaves=theirs)
