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
from mixwell.claims._methods import build, widen
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._digits import accuracy, fitted, images
from mixwell.claims.experts._synthetic import projections
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

PLAIN: dict[str, Any] = {"hidden_dim": 8, "depth": 3}
BOTH: dict[str, Any] = {**PLAIN, "balance": {"switch": 0.01}, "master_dim": 8}


class Tree(nn.Module):
    """A tree as a classifier."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        super().__init__()
        draws = generator(seed, "tree")
        self.layer = build("experts.layers.fast_feedforward", 64, generator=draws, **options)
        widen(projections(self.layer))

    def forward(self, x_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """(scores of the digits [N, 10], auxiliary loss)."""
        mixed = self.layer(x_NHW.flatten(1), Context())
        none = mixed.y_TD.new_zeros(())
        return mixed.y_TD[:, :10], none if mixed.aux is None else mixed.aux


@torch.no_grad()
def leaves(tree: Tree, x_NHW: Tensor) -> int:
    """How many leaves the images use."""
    mixed = tree.layer(x_NHW.flatten(1), Context())
    used = mixed.routing.indices_TK.unique()
    return used.numel()


def measure(seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """(accuracy with hard choices, leaves in use)."""
    x, y, x_test, y_test = images(seed)
    tree = Tree(seed, options)
    fitted(tree, x, y, seed, steps=1500)
    used = leaves(tree, x_test)
    return accuracy(tree, x_test, y_test), float(used)


def claim(bench: Bench) -> Evidence:
    """Accuracy with balance and master leaf against without."""
    both, ours = series(bench, measure, BOTH)
    plain, theirs = series(bench, measure, PLAIN)
    evidence = weigh("Balance and a master leaf make the tree more accurate.", "accuracy on test images with one leaf",
                     both, plain, lower_is_better=False,
                     note="Hardening at 3 sends all images to one leaf with and without balance; what is gained with "
                          "one seed is the master leaf's.")
    return provided(evidence, sum(ours) > sum(theirs), "No more leaves are in use.", method_leaves=ours,
                    baseline_leaves=theirs)
