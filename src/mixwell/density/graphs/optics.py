"""Smoothing put together from parts: every Markov kernel is an optic, and optics compose along chains and trees.

**Equation:** a kernel K from X to Y goes backward, h on Y -> K h on X, (K h)(x) = sum_y K(x, y) h(y), and keeps h and
K h; it goes forward, mu on X -> mu'(y) = sum_x mu(x) K(x, y) h(y) / (K h)(x), with what it kept. One after another goes
backward through the second, then the first, keeps both, and goes forward through the first, then the second; two beside
each other take h1 x h2. Copying X goes backward by h1 h2, which fuses what branches say. With h = 1 or a likelihood at
every end and a start mu: likelihood = sum_x mu(x) (K h)(x), and the measures on the way are the posteriors.

**Shapes:** kernels (X, Y), rows of probabilities; start (X,); log h (Y,), or nested pairs where there are branches.

**Reference:** van der Meulen, Schauer (2023), Compositionality in algorithms for smoothing, arXiv:2303.13865.

**Differs:** written from the abstract. State spaces are finite, and h is kept as logarithms. What is kept differs by
brackets, as nested pairs do; likelihood and measures do not. Of a measure on a product its parts are kept, which is all
that a tree's next steps read.

**Fails when:** h on a product is no product: then no pair (h1, h2) stands for it, and the law of parts beside each
other does not hold.

**Cost:** O(X Y) a kernel, each way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import log_weights

Backward = tuple[Any, Any]  # what is kept for the way forward, and log h before


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a start may be; `ValueError` for a value out of range."""

    tol: float = 1e-4  # by how much the start's sum may differ from one; infinite: any measure, of a model cut in two

    def __post_init__(self) -> None:
        if self.tol < 0:
            raise ValueError(f"tol is {self.tol}; expected 0 or more")


class Optic(Protocol):
    """A part of a model that smooths: backward with log h, forward with a measure and with what was kept."""

    def backward(self, log_h: Any) -> Backward:
        """What is kept, and log h before this part; h on a product is a pair."""

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The posterior after this part, and those after each kernel in it, in order."""


@dataclass(frozen=True, eq=False)
class Step:
    """A kernel, rows of probabilities (X, Y); `ValueError` for rows that are none."""

    kernel_XY: Tensor

    def __post_init__(self) -> None:
        kernel_XY = self.kernel_XY
        sums_X = kernel_XY.sum(-1)
        ones_X = torch.ones_like(sums_X)
        positive = bool((kernel_XY >= 0).all())
        if kernel_XY.ndim != 2 or not positive or not torch.allclose(sums_X, ones_X):
            raise ValueError(f"kernel {tuple(kernel_XY.shape)} has rows that are no probabilities of sum one")

    def backward(self, log_h: Any) -> Backward:
        """log h and log K h."""
        X, Y = self.kernel_XY.shape
        if not isinstance(log_h, Tensor) or log_h.shape != (Y,):
            raise ValueError(f"a kernel ({X}, {Y}) meets h {_form(log_h)}; expected ({Y},)")
        reached_XY = log_weights(self.kernel_XY) + log_h
        log_before_X = _log_sum(reached_XY)
        return (log_h, log_before_X), log_before_X

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The measure through the kernel tilted by h; states that cannot lead on take no part."""
        log_h_Y, log_before_X = kept
        possible_X1 = log_before_X.isfinite()[:, None]
        reached_XY = log_weights(self.kernel_XY) + log_h_Y
        log_tilted_XY = reached_XY - torch.where(possible_X1, log_before_X[:, None], 0.0)
        tilted_XY = log_tilted_XY.exp()
        after_Y = mu @ tilted_XY
        return after_Y, (after_Y,)


@dataclass(frozen=True, eq=False)
class Copy:
    """A state handed to two branches."""

    def backward(self, log_h: Any) -> Backward:
        """log h1 + log h2; nothing is kept."""
        one, other = _pair(log_h)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            raise ValueError(f"branches of one state meet h {_form(log_h)}; expected two of one shape")
        return (), one + other

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The measure twice."""
        return (mu, mu), ()


@dataclass(frozen=True, eq=False)
class Stay:
    """Nothing happens."""

    def backward(self, log_h: Any) -> Backward:
        """log h as it is."""
        return (), log_h

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The measure as it is."""
        return mu, ()


@dataclass(frozen=True, eq=False)
class Then:
    """One part after another."""

    first: Optic
    second: Optic

    def backward(self, log_h: Any) -> Backward:
        """Through the second, then through the first."""
        kept_second, between = self.second.backward(log_h)
        kept_first, before = self.first.backward(between)
        return (kept_first, kept_second), before

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Through the first, then through the second."""
        kept_first, kept_second = kept
        between, early = self.first.forward(kept_first, mu)
        after, late = self.second.forward(kept_second, between)
        return after, early + late


@dataclass(frozen=True, eq=False)
class Beside:
    """Two parts on a product of states, each on its own."""

    left: Optic
    right: Optic

    def backward(self, log_h: Any) -> Backward:
        """Each through its own."""
        of_left, of_right = _pair(log_h)
        kept_left, before_left = self.left.backward(of_left)
        kept_right, before_right = self.right.backward(of_right)
        return (kept_left, kept_right), (before_left, before_right)

    def forward(self, kept: Any, mu: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Each through its own; the left's measures come first."""
        kept_left, kept_right = kept
        of_left, of_right = _pair(mu)
        after_left, left = self.left.forward(kept_left, of_left)
        after_right, right = self.right.forward(kept_right, of_right)
        return (after_left, after_right), left + right


class Smoothed(NamedTuple):
    """What a model says of what was seen."""

    log_likelihood: Tensor
    start_X: Tensor  # the posterior of the start
    measures: tuple[Tensor, ...]  # posteriors after each kernel, in the order in which they are met


def chain(*parts: Optic) -> Optic:
    """Parts one after another."""
    return reduce(Then, parts)


def watched(steps: list[Optic], emissions: list[Optic]) -> Optic:
    """A hidden Markov model: after each step a copy of the state is emitted.

    Its h is (h of the first emission, (h of the second, ...)), the last pair's second the state's own at the end.
    `ValueError` for unequal numbers.
    """
    if len(steps) != len(emissions) or not steps:
        raise ValueError(f"{len(steps)} steps for {len(emissions)} emissions; expected one each, and one at least")
    model: Optic = Stay()
    for step, emission in zip(reversed(steps), reversed(emissions)):
        model = chain(step, Copy(), Beside(emission, model))
    return model


@method(title="Smoothing by composed optics", year=2023, tags={"value", "differentiable"},
        paper="Compositionality in algorithms for smoothing")
def smooth_by_optics(optic: Optic, start_X: Tensor, log_h: Any, config: Config | None = None) -> Smoothed:
    """Likelihood and posteriors of a model from a start (X,), given log h at its ends; see the card.

    `ValueError` where parts do not fit each other, the start is no probability, or what is seen is impossible.
    """
    config = config or Config()
    off = float((start_X.detach().sum() - 1).abs())
    if off > config.tol or bool((start_X < 0).any()):
        raise ValueError(f"the start {start_X.tolist()} is no probability of sum one")
    kept, log_before_X = optic.backward(log_h)
    if not isinstance(log_before_X, Tensor) or log_before_X.shape != start_X.shape:
        raise ValueError(f"the model starts from {_form(log_before_X)}, the start is {_form(start_X)}")
    log_joint_X = log_weights(start_X) + log_before_X
    log_likelihood = log_joint_X.logsumexp(0)
    if not log_likelihood.isfinite():
        raise ValueError("what is seen has no probability under this model")
    posterior_X = (log_joint_X - log_likelihood).exp()
    _, measures = optic.forward(kept, posterior_X)
    return Smoothed(log_likelihood, posterior_X, measures)


def brackets(parts: list[Optic]) -> list[Optic]:
    """The same chain in every way of putting brackets."""
    if len(parts) == 1:
        return parts
    found: list[Optic] = []
    for cut in range(1, len(parts)):
        for first in brackets(parts[:cut]):
            found += [Then(first, second) for second in brackets(parts[cut:])]
    return found


def _log_sum(reached_XY: Tensor) -> Tensor:
    """log sum_y, -inf where all are, with finite gradients."""
    there_X = (reached_XY > -torch.inf).any(1)
    safe_XY = torch.where(there_X[:, None], reached_XY, 0.0)
    return torch.where(there_X, safe_XY.logsumexp(1), -torch.inf)


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"two parts beside each other meet {_form(value)}; expected a pair, one for each")
    return value


def _form(value: Any) -> str:
    """The shape of a tensor, or of nested pairs of them."""
    if isinstance(value, tuple):
        inner = ", ".join(_form(part) for part in value)
        return f"({inner})"
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__



def example(generator: torch.Generator) -> dict[str, Any]:
    """Two steps of a state, each emitted once."""
    steps: list[Optic] = []
    emissions: list[Optic] = []
    for _ in range(2):
        moves_33 = torch.rand(3, 3, generator=generator, dtype=torch.float64)
        steps.append(Step(moves_33.softmax(1)))
        signs_32 = torch.rand(3, 2, generator=generator, dtype=torch.float64)
        emissions.append(Step(signs_32.softmax(1)))
    seen_2 = torch.tensor([0.0, -torch.inf], dtype=torch.float64)
    free_3 = torch.zeros(3, dtype=torch.float64)
    start_X = torch.full((3,), 1 / 3, dtype=torch.float64)
    return {"optic": watched(steps, emissions), "start_X": start_X, "log_h": (seen_2, (seen_2, free_3))}
