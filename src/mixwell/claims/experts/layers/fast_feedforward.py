"""Fast feedforward with load balance and a master leaf: more accurate at inference than the plain tree.

Paper: Enhancing Fast Feed Forward Networks with Load Balancing and a Master Leaf Node.
Tried: scikit-learn's digits, 64 pixels into a tree of eight leaves of width 8 whose first ten outputs are the scores;
balance and a master leaf of width 8, against the tree without both, three hardenings tried of each; accuracy on 597
test images with one leaf each. Against it: an accuracy that is no higher, or no more leaves in use. A balanced tree
that sends all images to one leaf is not tried: its balance is not on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._methods import build, widen
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side, Untestable
from mixwell.claims.experts._digits import accuracy, fitted, images
from mixwell.claims.experts._synthetic import projections
from mixwell.claims.grids import RATES, finer, variants
from mixwell.claims.record import TUNING_SEED
from mixwell.core.rng import generator
from mixwell.core.routing import Context

PLAIN: dict[str, Any] = {"hidden_dim": 8, "depth": 3}
MASTERED: dict[str, Any] = {**PLAIN, "master_dim": 8}
HARDENINGS = (0.01, 0.1, 1.0)  # the paper's 3 sends all images to one leaf before the leaves differ


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


def plain(bench: Bench, seed: int, *, lr: float, steps: int = 1500, **options: Any) -> dict[str, float]:
    """Accuracy with hard choices, and leaves in use."""
    x, y, x_test, y_test = images(seed)
    tree = Tree(seed, options)
    fitted(tree, x, y, seed, steps=steps, lr=lr)
    used = leaves(tree, x_test)
    right = accuracy(tree, x_test, y_test)
    return {"accuracy": right, "leaves": float(used)}


def balanced(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """The same of a tree whose balance has to be on, once it is tuned."""
    found = plain(bench, seed, **options)
    if seed != TUNING_SEED and found["leaves"] < 2:
        raise Untestable(f"all images reach one leaf with {options}; expected a balance that spreads them")
    return found


BOTH = {"lr": RATES, "hardening": HARDENINGS, "balance": variants({}, switch=(0.01, 0.1))}
ALONE = {"lr": finer(RATES, 6), "hardening": HARDENINGS}

CLAIM = Claim(
    "Balance and a master leaf make the tree more accurate.", "accuracy on test images with one leaf",
    quantity="accuracy", lower_is_better=False,
    provided=(Comparison(quantity="leaves", lower_is_better=False),),
    sides={"method": Side(balanced, MASTERED, BOTH), "baseline": Side(plain, PLAIN, ALONE)})
