"""Search in a tree of decisions: walks that go where losses were low, or a linear surrogate of what is built.

**Equation:** walks: from the root to the child of largest mean score + c sqrt(2 ln N / n), N walks through the node and
    n through the child, untried ones first, ties at random; below the first untried node at random; the loss is added
    along the tree's part of the walk. Surrogate: of 50 random trials the one of least loss by ridge regression on their
    features, with probability 0.25 a random one.
**Shapes:** trials with features: decisions [N, D] of `spaces.listed`, -1 after the last; for the surrogate any numbers,
    such as `spaces.grams`.
**Reference:** Negrinho, Gordon 2017 (1704.08792), DeepArchitect; the released code's constants.
**Differs:** scores are losses scaled to 0 and 1 by those seen so far, where the paper adds accuracies. Features of the
    surrogate are scaled by their deviation. A trial that comes again is asked again, at no epoch.
**Fails when:** the first decisions are many and do not matter: walks spread over them like random search. Decide
    ordered options by halves then (`spaces.trials` does).
**Cost:** `evaluations` trainings to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.spaces import listed, space
from mixwell.scaling.trials import Found, Trials

KINDS = ("walks", "surrogate", "random")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the search; `ValueError` for a value out of range."""

    evaluations: int = 64  # trials that are asked, at least 1
    kind: str = "walks"  # so, surrogate, or random
    explore: float = 0.5  # c, 0 or more
    candidates: int = 50  # of the surrogate, at least 1
    anyone: float = 0.25  # chance of a random trial instead of the surrogate's, 0 to 1
    ridge: float = 1.0  # of the surrogate, above 0

    def __post_init__(self) -> None:
        least = min(self.evaluations, self.candidates)
        if least < 1:
            raise ValueError(f"evaluations or candidates is {least}; expected at least 1 of each")
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"kind is {self.kind!r}; expected one of {known}")
        if not self.explore >= 0:
            raise ValueError(f"explore is {self.explore}; expected 0 or more")
        if not 0 <= self.anyone <= 1:
            raise ValueError(f"anyone is {self.anyone}; expected 0 to 1")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; expected a number above 0")


@method(title="Search in a tree of decisions", year=2017,
        paper="DeepArchitect: Automatically Designing and Training Deep Architectures")
def tree(trials: Trials, config: Config, generator: np.random.Generator) -> Found:
    """The best trial asked; trials without features raise `MixwellError` unless the search is random."""
    losses: dict[int, float] = {}
    root = Node()
    for _ in range(config.evaluations):
        if config.kind == "walks":
            passed, trial = walked(root, trials.features_ND, losses, config.explore, generator)
        else:
            passed, trial = [], _proposed(trials, losses, config, generator)
        losses[trial] = trials.loss(trial, trials.most)
        for node in passed:
            node.trials.append(trial)
    return trials.found(losses)


@dataclass
class Node:
    """A place in the tree: the trials of the walks through it, and where its decisions lead."""

    trials: list[int] = field(default_factory=list)
    children: dict[int, Node] = field(default_factory=dict)


def walked(root: Node, taken_ND: np.ndarray, losses: dict[int, float], explore: float,
           generator: np.random.Generator) -> tuple[list[Node], int]:
    """The nodes of one walk, of which the last may be new, and the trial at its end."""
    node, passed = root, [root]
    below = np.arange(len(taken_ND))
    score = scores(losses)
    for depth in range(taken_ND.shape[1]):
        options = np.unique(taken_ND[below, depth])
        if options[0] == -1 and len(options) == 1:
            break
        value = _best(node, options, score, explore, generator)
        below = below[taken_ND[below, depth] == value]
        fresh = value not in node.children
        node = node.children.setdefault(value, Node())
        passed.append(node)
        if fresh:
            break
    return passed, int(generator.choice(below))


def scores(losses: dict[int, float]) -> dict[int, float]:
    """1 for the lowest loss so far, 0 for the highest; trials that diverged count as the highest."""
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    if not finite:
        return dict.fromkeys(losses, 0.0)
    low, high = min(finite), max(finite)
    width = max(high - low, 1e-12)
    found = {}
    for trial, loss in losses.items():
        found[trial] = (high - min(loss, high)) / width
    return found


def _best(node: Node, options: np.ndarray, score: dict[int, float], explore: float,
          generator: np.random.Generator) -> int:
    """The decision of largest bound; untried ones first, ties at random."""
    bounds = []
    for value in options.tolist():
        child = node.children.get(value)
        bound = math.inf
        if child is not None:
            through = len(child.trials)
            mean = sum(score[trial] for trial in child.trials) / through
            rare = 2 * math.log(len(node.trials)) / through
            bound = mean + explore * math.sqrt(rare)
        bounds.append(bound)
    highest = max(bounds)
    tied = [value for value, bound in zip(options.tolist(), bounds) if bound == highest]
    return int(generator.choice(tied))


def _proposed(trials: Trials, losses: dict[int, float], config: Config, generator: np.random.Generator) -> int:
    """A random trial, or the surrogate's choice of some that were not asked."""
    every = np.arange(len(trials))
    left = np.setdiff1d(every, list(losses))
    if not len(left):
        left = every
    anyone = generator.choice(left)
    seen = [trial for trial, loss in losses.items() if math.isfinite(loss)]
    chance = generator.random()
    if config.kind == "random" or chance < config.anyone or len(seen) < 2:
        return int(anyone)
    known = [losses[trial] for trial in seen]
    told_N = told(trials.features_ND, seen, known, config.ridge)
    count = min(config.candidates, len(left))
    some = generator.choice(left, count, replace=False)
    best = told_N[some].argmin()
    return int(some[best])


def told(features_NF: np.ndarray, seen: list[int], losses: list[float], ridge: float) -> np.ndarray:
    """Losses of all trials by ridge regression on some: [N]."""
    deviation_F = features_NF.std(0)
    scale_F = np.where(deviation_F > 0, deviation_F, 1.0)
    scaled_NF = (features_NF - features_NF.mean(0)) / scale_F
    x_SF = scaled_NF[seen]
    middle = np.mean(losses)
    above_S = np.array(losses) - middle
    gram_FF = x_SF.T @ x_SF
    size = len(gram_FF)
    penalty_FF = ridge * np.eye(size)
    weight_F = np.linalg.solve(gram_FF + penalty_FF, x_SF.T @ above_S)
    return scaled_NF @ weight_F + middle


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Sixty-four ways of three ordered options, whose loss is lowest at one value of each."""
    values = [0, 1, 2, 3]
    block = space({"method": "block", "a": values, "b": values, "c": values})
    taken_ND, every = listed(block, halves=True)
    wanted = generator.integers(4, size=3)
    losses = []
    for built, in every:
        place = [built[name] for name in "abc"]
        off = np.array(place) - wanted
        losses.append([1 + off @ off])
    trials = Trials.tabulated(losses, taken_ND)
    return {"trials": trials, "config": Config(evaluations=48)}
