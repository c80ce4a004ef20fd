"""BiMix: a domain's loss over its own weight and the training steps; and weights without training, from entropies.

**Equation:** L_i(r_i, s) = r_i^(-alpha_i) (B_i / s^beta_i + C_i). Optimum of sum_i w_i L_i on the simplex at steps s:
    w_i alpha_i K_i r_i^(-alpha_i - 1) = mu with K_i = B_i / s^beta_i + C_i. Without training: r_i in proportion to the
    conditional entropy of domain i's tokens.
**Shapes:** weights r [N, D], steps s [N], losses [N, M]; each target is the domain of the same name.
**Reference:** Ge et al. 2024 (2405.14908).
**Differs:** the prefactor A_i is folded into B_i and C_i, with which it is redundant. Huber's loss of log L. Without
    steps the bracket is one constant.
**Fails when:** a weight is 0 (a pole, refused), or domains help each other, which one weight cannot say.
**Cost:** O(starts * steps * N) a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.predictor import Model, Predictor
from mixwell.data.runs import MixingRuns
from mixwell.scaling import fitting
from mixwell.scaling.fitting import Problem, Solution, log_loss


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the law is fitted; `ValueError` for a value out of range."""

    delta: float = 1e-3  # Huber's, in log L, above 0
    starts: int = 8  # at least 1

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta is {self.delta}; expected a number above 0")
        if self.starts < 1:
            raise ValueError(f"starts is {self.starts}; expected at least 1")


@method(title="Bivariate mixing law", year=2024, tags={"own"},
        paper="Data Mixing Made Efficient: A Bivariate Scaling Law for Language Model Pretraining")
class BivariateLaw(Predictor):
    """A power law in the weight times one in the steps."""

    def default(self) -> Config:
        """Eight starts."""
        return Config()

    def fit_one(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Model:
        """The law of one domain; a weight of 0 or a target that is no domain raises `MixwellError`."""
        place = own_place(runs, target)
        found = self.solve(runs, target, generator)

        def predict(weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
            own_N = _positive(weights_ND[:, place], runs.domains[place])
            if runs.steps_N is not None and steps_N is None:
                raise MixwellError("the law was fitted over steps; give those at which loss is predicted.")
            if runs.steps_N is None:
                steps_N = None
            log_N = log_loss(terms(own_N, steps_N), found.theta_P)
            return np.exp(log_N)

        return predict

    def solve(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Solution:
        """Parameters alpha, log C and, over steps, log B and beta."""
        place = own_place(runs, target)
        own_N = _positive(runs.weights_ND[:, place], runs.domains[place])
        losses_N = runs.losses_NM[:, target]
        terms_NKP = terms(own_N, runs.steps_N)
        even_N = np.ones_like(losses_N)
        problem = Problem(lambda _: terms_NKP, (), losses_N, even_N, self.config.delta, in_logs=True)
        count = self.config.starts
        level = np.log(losses_N.min())
        starts_S4 = generator.uniform([0.0, level - 1.0, level, 0.0], [0.5, level, level + 6.0, 1.0], (count, 4))
        parameters = terms_NKP.shape[2]
        no_shape = np.empty((count, 0))
        return fitting.solve(problem, starts_S4[:, :parameters], no_shape)


def own_place(runs: MixingRuns, target: int) -> int:
    """Which domain a target is; `MixwellError` where it is none."""
    name = runs.targets[target]
    if name not in runs.domains:
        raise MixwellError(f"target {name!r} is no domain that is trained on ({', '.join(runs.domains)}); the "
                           "bivariate law has a domain's own weight alone.")
    return runs.domains.index(name)


def _positive(own_N: np.ndarray, name: str) -> np.ndarray:
    if not (own_N > 0).all():
        raise MixwellError(f"the weight of {name!r} is 0 in a run, where the bivariate law has a pole; leave such runs "
                           "out, or take data.mixing.exponential_law.")
    return own_N


def terms(own_N: np.ndarray, steps_N: np.ndarray | None) -> np.ndarray:
    """X [N, K, P] of alpha, log C, and over steps log B and beta."""
    log_own_N = np.log(own_N)
    count = 1 if steps_N is None else 2
    found = np.zeros((len(own_N), count, 2 * count))
    found[:, :, 0] = -log_own_N[:, None]
    found[:, 0, 1] = 1.0
    if steps_N is not None:
        found[:, 1, 2] = 1.0
        found[:, 1, 3] = -np.log(steps_N)
    return found


def optimum(alpha_D: np.ndarray, height_D: np.ndarray, importance_D: np.ndarray) -> np.ndarray:
    """The one mixture [D] of least sum_i w_i K_i r_i^(-alpha_i): alpha, K and w are above 0."""
    log_top_D = np.log(importance_D * alpha_D * height_D)
    power_D = 1 / (alpha_D + 1)
    low = log_top_D.min() - 100.0
    high = log_top_D.max() + 100.0
    for _ in range(200):  # the sum of shares falls with log mu
        middle = 0.5 * (low + high)
        excess_D = log_top_D - middle
        shares_D = np.exp(power_D * excess_D)
        if shares_D.sum() > 1:
            low = middle
        else:
            high = middle
    return shares_D / shares_D.sum()


def entropy_weights(documents: Sequence[np.ndarray], tokens: int) -> np.ndarray:
    """Weights [D] in proportion to each domain's entropy of a token given the one before.

    documents: a stream of token ids a domain; tokens: how many of each are read, the same for all, for the plug-in
    entropy of few tokens is too low. A stream that is shorter raises `MixwellError`.
    """
    found = [conditional_entropy(ids, tokens) for ids in documents]
    total = sum(found)
    if total == 0:
        raise MixwellError("every domain's next token follows from the one before; entropies say nothing.")
    return np.array(found) / total


def conditional_entropy(ids: np.ndarray, tokens: int) -> float:
    """H(X_t | X_t-1) in nats of the first `tokens` ids."""
    ids = np.asarray(ids)
    if len(ids) < tokens or tokens < 2:
        raise MixwellError(f"a domain has {len(ids)} tokens; {tokens} are to be read of each (2 at least).")
    before, behind = ids[: tokens - 1], ids[1:tokens]
    pairs = np.stack([before, behind], 1)
    _, together = np.unique(pairs, axis=0, return_counts=True)
    _, alone = np.unique(before, return_counts=True)
    return _entropy(together) - _entropy(alone)


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Runs of three domains at four numbers of steps that follow the law."""
    weights_ND = generator.dirichlet(np.full(3, 5.0), 32)
    steps_N = np.tile([100.0, 300.0, 1000.0, 3000.0], 8)
    decay_N = 20 / np.sqrt(steps_N)
    alpha_D = np.array([0.05, 0.1, 0.2])
    floors_D = np.array([1.0, 1.5, 2.0])
    height_ND = np.add.outer(decay_N, floors_D)
    losses_ND = height_ND / weights_ND**alpha_D
    names = ("a", "b", "c")
    runs = MixingRuns(names, names, weights_ND, losses_ND, steps_N)
    return {"runs": runs}
