"""Backward filtering, forward guiding: paths of a Markov process on a tree, drawn towards what is seen, with weights.

**Equation:** node v has a kernel K_v from its parent, a simpler one K~_v, and a likelihood l_v (1 where nothing is
seen). Backward h_v = l_v prod_(children c) K~_c h_c, (K h)(x) = int K(x, dy) h(y). Forward y ~ K_v(x, dy) h_v(y) /
(K_v h_v)(x), with weight w_v = (K_v h_v)(x) / (K~_v h_v)(x). From the root's x_0 the likelihood is h_0(x_0) times the
mean of prod_v w_v, without spread where K~ = K. Tables: sums over states. Normal steps N(m, Q), messages h(y) =
exp(c + F.y - y.G y / 2) of which G may be singular: R = (I + Q G)^-1, log K h = c + (log det R + F.R Q F) / 2 + F.R m -
m.G R m / 2, and the guided step is N(R (m + Q F), R Q); the surrogate has m = B x + b, other steps any m(x).

**Shapes:** states (N,) of tables, (N, D) of normal steps, one tensor a node; weights (N,), in logarithms.

**Reference:** van der Meulen, Schauer (2022), Automatic Backward Filtering Forward Guiding for Markov processes and
graphical models, arXiv:2010.03509; Mider, Schauer, van der Meulen (2021), Continuous-discrete smoothing of diffusions.

**Differs:** written from the abstract; rules for normal steps are in information form, so that a state seen in part
needs no inverse. Two kinds of kernels; others join by `Kernel` and `Message`. Time is discrete, and the graph a tree.

**Fails when:** the surrogate's h falls off faster than the true one's: few paths carry all weight. A process with
several modes between observations needs paths enough for each.

**Cost:** O(V D^3 + N V D^2) for V nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal, log_weights, symmetric


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the paths; `ValueError` for one out of range."""

    paths: int = 1000  # N
    proposal: Literal["guided", "forward"] = "guided"  # forward: by the kernels alone, weighed by the likelihoods
    resample: float = 0.0  # whole paths are drawn anew where the effective share falls below this; 0: never

    def __post_init__(self) -> None:
        if self.proposal not in ("guided", "forward"):
            raise ValueError(f"proposal is {self.proposal!r}; expected 'guided' or 'forward'")
        share = 0 <= self.resample <= 1
        if self.paths < 1 or not share:
            raise ValueError(f"paths and resample are {self.paths} and {self.resample}; expected 1 or more, and 0 to 1")


class Message(Protocol):
    """log h, up to nothing: constants count."""

    def log_at(self, x_N: Tensor) -> Tensor:
        """log h (N,) of states."""

    def fuse(self, other: Any) -> Message:
        """The product with another of its kind."""


class Kernel(Protocol):
    """A step from a parent's state, and a simpler one that messages are pulled back through."""

    def pull(self, h: Any) -> Message:
        """K~ h."""

    def draw(self, x_N: Tensor, generator: torch.Generator) -> Tensor:
        """A successor of every state."""

    def guide(self, x_N: Tensor, h: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A successor of every state tilted by h, and log K h (N,) at the states."""


@dataclass(frozen=True)
class Tree:
    """Nodes in an order where parents come first; node 0 is the root, whose state is given."""

    parents: Sequence[int]  # -1 of the root
    kernels: Sequence[Kernel | None]  # from the parent; None of the root
    likelihoods: Sequence[Message | None]  # of what is seen at a node; None where nothing is

    def __post_init__(self) -> None:
        sizes = len(self.parents), len(self.kernels), len(self.likelihoods)
        if len(set(sizes)) > 1:
            raise ValueError(f"parents, kernels, likelihoods have lengths {sizes}; expected one of each for every node")
        for node, parent in enumerate(self.parents):
            earlier = 0 <= parent < node if node else parent == -1
            if not earlier:
                raise ValueError(f"the parent of node {node} is {parent}; expected -1 of node 0, an earlier node of "
                                 "others")
        without = [node for node, kernel in enumerate(self.kernels) if node and kernel is None]
        if without:
            raise ValueError(f"node {without[0]} has no kernel; only the root goes without")
        if all(likelihood is None for likelihood in self.likelihoods):
            raise ValueError("no node has a likelihood; expected one or more")


@dataclass(frozen=True)
class Scores:
    """A message over S states."""

    log_S: Tensor

    def log_at(self, x_N: Tensor) -> Tensor:
        """log h (N,) of states."""
        return self.log_S[x_N]

    def fuse(self, other: Scores) -> Scores:
        """The product."""
        return Scores(self.log_S + other.log_S)


@dataclass(frozen=True)
class Table:
    """A step among finitely many states, rows of probabilities (S, S'); `surrogate` is simpler, or None for itself."""

    table_SS: Tensor
    surrogate_SS: Tensor | None = None

    def pull(self, h: Scores) -> Scores:
        """K~ h."""
        simpler_SS = self.table_SS if self.surrogate_SS is None else self.surrogate_SS
        reached_SS = log_weights(simpler_SS) + h.log_S
        return Scores(reached_SS.logsumexp(1))

    def draw(self, x_N: Tensor, generator: torch.Generator) -> Tensor:
        """A successor (N,) of every state."""
        chance_NS = self.table_SS[x_N]
        return torch.multinomial(chance_NS, 1, generator=generator)[:, 0]

    def guide(self, x_N: Tensor, h: Scores, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A successor (N,) tilted by h, and log K h (N,)."""
        log_NS = log_weights(self.table_SS)[x_N] + h.log_S
        log_total_N = log_NS.logsumexp(1)
        if not bool(log_total_N.isfinite().all()):
            raise ValueError("a state that paths reached cannot lead to what is seen: the surrogate allows what the "
                             "table forbids; give it zeros where the table has them")
        next_N1 = torch.multinomial(log_NS.softmax(1), 1, generator=generator)
        return next_N1[:, 0], log_total_N


@dataclass(frozen=True)
class Quadratic:
    """A message exp(c + F.x - x.G x / 2) over vectors; G may be singular."""

    c: Tensor
    F_D: Tensor
    G_DD: Tensor

    def log_at(self, x_ND: Tensor) -> Tensor:
        """log h (N,) of states."""
        curved_N = (x_ND @ self.G_DD * x_ND).sum(1)
        return self.c + x_ND @ self.F_D - 0.5 * curved_N

    def fuse(self, other: Quadratic) -> Quadratic:
        """The product."""
        c = self.c + other.c
        F_D = self.F_D + other.F_D
        return Quadratic(c, F_D, self.G_DD + other.G_DD)


def seen_linearly(y_E: Tensor, H_ED: Tensor, noise_EE: Tensor) -> Quadratic:
    """The likelihood of y = H x + N(0, noise)."""
    weighed_ED = torch.linalg.solve(noise_EE, H_ED)
    white_E = torch.linalg.solve(noise_EE, y_E)
    square = y_E @ white_E
    log_scale = 0.5 * torch.logdet(noise_EE)
    c = log_normal(square, log_scale, len(y_E))
    F_D = y_E @ weighed_ED
    G_DD = H_ED.mT @ weighed_ED
    return Quadratic(c, F_D, symmetric(G_DD))


def averaged(h: Quadratic, Q_DD: Tensor) -> tuple[Quadratic, Tensor]:
    """h averaged over N(m, Q), as a message in m; and R (D, D)."""
    eye_DD = torch.eye(len(Q_DD), dtype=Q_DD.dtype)
    scale_DD = eye_DD + Q_DD @ h.G_DD
    R_DD = torch.linalg.inv(scale_DD)
    F_D = h.F_D @ R_DD
    tilted = F_D @ Q_DD @ h.F_D
    _, log_det = torch.linalg.slogdet(scale_DD)
    gained = 0.5 * (tilted - log_det)
    G_DD = symmetric(h.G_DD @ R_DD)
    message = Quadratic(h.c + gained, F_D, G_DD)
    return message, R_DD


@dataclass(frozen=True)
class NormalStep:
    """x' ~ N(mean(x), covariance), with B x + b in place of the mean where messages are pulled back.

    surrogate_DD: the covariance that goes with B x + b; None: the step's own.
    """

    mean: Callable[[Tensor], Tensor]  # (N, D) to (N, D')
    covariance_DD: Tensor
    B_DD: Tensor
    b_D: Tensor
    surrogate_DD: Tensor | None = None

    def pull(self, h: Quadratic) -> Quadratic:
        """K~ h."""
        Q_DD = self.covariance_DD if self.surrogate_DD is None else self.surrogate_DD
        ahead, _ = averaged(h, Q_DD)
        at_b = ahead.log_at(self.b_D[None])
        slope_D = ahead.F_D - ahead.G_DD @ self.b_D
        F_D = slope_D @ self.B_DD
        half_DD = ahead.G_DD @ self.B_DD
        G_DD = self.B_DD.mT @ half_DD
        return Quadratic(at_b[0], F_D, symmetric(G_DD))

    def draw(self, x_ND: Tensor, generator: torch.Generator) -> Tensor:
        """A successor (N, D) of every state."""
        mean_ND = self.mean(x_ND)
        return mean_ND + _noise(mean_ND, self.covariance_DD, generator)

    def guide(self, x_ND: Tensor, h: Quadratic, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A successor (N, D) tilted by h, and log K h (N,)."""
        ahead, R_DD = averaged(h, self.covariance_DD)
        spread_DD = symmetric(R_DD @ self.covariance_DD)
        mean_ND = self.mean(x_ND)
        shift_D = spread_DD @ h.F_D
        pulled_ND = mean_ND @ R_DD.mT + shift_D
        next_ND = pulled_ND + _noise(pulled_ND, spread_DD, generator)
        return next_ND, ahead.log_at(mean_ND)


def linear_step(B_DD: Tensor, b_D: Tensor, covariance_DD: Tensor) -> NormalStep:
    """x' ~ N(B x + b, covariance), its own surrogate."""

    def mean(x_ND: Tensor) -> Tensor:
        return x_ND @ B_DD.mT + b_D

    return NormalStep(mean, covariance_DD, B_DD, b_D)


def _noise(like_ND: Tensor, covariance_DD: Tensor, generator: torch.Generator) -> Tensor:
    """Centred normal draws (N, D); directions without variance stay at zero."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    spread_D = values_D.clamp(min=0).sqrt()
    root_DD = vectors_DD * spread_D
    drawn_ND = torch.randn(like_ND.shape, generator=generator, dtype=like_ND.dtype)
    return drawn_ND @ root_DD.mT


def filter_back(tree: Tree) -> tuple[list[Message | None], list[Message | None]]:
    """h_v and K~_v h_v of every node, None where nothing is seen at or below it; the root has no second."""
    at: list[Message | None] = list(tree.likelihoods)
    pulled: list[Message | None] = [None] * len(at)
    for node in reversed(range(1, len(at))):
        h, kernel = at[node], tree.kernels[node]
        if h is None or kernel is None:
            continue
        message = kernel.pull(h)
        pulled[node] = message
        parent = tree.parents[node]
        there = at[parent]
        at[parent] = message if there is None else there.fuse(message)
    return at, pulled


@dataclass(frozen=True)
class Paths:
    """Weighted paths from the root."""

    states: tuple[Tensor, ...]  # one (N, ...) a node
    log_weights_N: Tensor  # since paths were last drawn anew; all the same where the surrogate is exact
    log_likelihood: Tensor  # of all that is seen, given the root's state; its exponential is unbiased
    effective: Tensor  # effective number of paths, 1 to N


@method(
    title="Backward filtering, forward guiding",
    paper="Automatic Backward Filtering Forward Guiding for Markov processes and graphical models",
    year=2022,
    tags={"value"},
)
def guided_paths(tree: Tree, root: Tensor, generator: torch.Generator, config: Config | None = None) -> Paths:
    """Draw paths over a tree whose root's state is `root` (() of a table, (D,) of vectors); see the module's card.

    A `ValueError` where no path has weight, or the surrogate leads where the kernel cannot go.
    """
    config = config or Config()
    at, pulled = filter_back(tree)
    N = config.paths
    states = [root.expand(N, *root.shape)]
    first = tree.likelihoods[0] if config.proposal == "forward" else at[0]
    log_w_N = torch.zeros(N, dtype=torch.float64)
    total = log_w_N[0] if first is None else first.log_at(root[None])[0]
    for node, parent in enumerate(tree.parents[1:], start=1):
        next_N, log_step_N = _step(tree, node, states[parent], at[node], pulled[node], config, generator)
        states.append(next_N)
        log_w_N = log_w_N + log_step_N
        _check_weights(log_w_N, node)
        effective = _effective(log_w_N)
        if effective < config.resample * N:
            share_N = log_w_N.softmax(0)
            rows_N = torch.multinomial(share_N, N, replacement=True, generator=generator)
            states = [state[rows_N] for state in states]
            total = total + _log_mean(log_w_N)
            log_w_N = torch.zeros_like(log_w_N)
    total = total + _log_mean(log_w_N)
    return Paths(tuple(states), log_w_N, total, _effective(log_w_N))


def _step(tree: Tree, node: int, x_N: Tensor, h: Message | None, pulled: Message | None, config: Config,
          generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """States of a node, and what they add to the logarithms of weights (N,)."""
    kernel = tree.kernels[node]
    likelihood = tree.likelihoods[node]
    assert kernel is not None
    if config.proposal == "guided" and pulled is not None:
        next_N, log_true_N = kernel.guide(x_N, h, generator)
        log_simpler_N = pulled.log_at(x_N)
        return next_N, log_true_N - log_simpler_N
    next_N = kernel.draw(x_N, generator)
    if likelihood is None:
        return next_N, torch.zeros(len(x_N), dtype=torch.float64)
    return next_N, likelihood.log_at(next_N)


def _log_mean(log_w_N: Tensor) -> Tensor:
    return log_w_N.logsumexp(0) - math.log(len(log_w_N))


def _effective(log_w_N: Tensor) -> Tensor:
    share_N = log_w_N.softmax(0)
    return 1 / share_N.square().sum()


def _check_weights(log_w_N: Tensor, node: int) -> None:
    if log_w_N.isnan().any() or not log_w_N.isfinite().any():
        raise ValueError(f"every path has weight zero at node {node}: what is seen is impossible under the model, or a "
                         "density is not a number; use more paths or a wider likelihood")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A chain of three states that splits in two, both ends seen."""
    logits_SS = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    simpler_SS = torch.full_like(logits_SS, 1 / 3)
    step = Table(logits_SS.softmax(1), simpler_SS)
    seen = Scores(logits_SS[0].log_softmax(0))
    tree = Tree(
        parents=[-1, 0, 1, 1],
        kernels=[None, step, step, step],
        likelihoods=[None, None, seen, seen],
    )
    return {
        "tree": tree,
        "root": torch.tensor(0),
        "generator": generator,
        "config": Config(paths=50),
    }
