"""DoReMi: weight grows where a proxy model is furthest above a reference model.

**Equation:** lambda_i = mean over domain i's tokens of max(l_proxy - l_reference, 0);
    alpha <- softmax(log alpha + eta lambda), then alpha <- (1 - eps) alpha + eps / D. The proxy's loss is
    sum_t w_t l_t / sum_t w_t with w_t = alpha_i / p_i, p the shares that its batches are drawn by. The result is the
    mean of alpha over all steps, the start included.
**Shapes:** per token domain, loss and reference loss [T]; alpha, lambda [D].
**Reference:** Xie et al. 2023 (2305.10429), algorithm 1.
**Differs:** eps is 1e-4 as in the released code (the paper's is 1e-3). A domain that a batch lacks keeps its last
    lambda, at first log(vocab_size), as there; a larger `smoothing` is the least share of the even mixture that every
    domain keeps, so that the weights do not collapse to one. Iterating (the result trains the next reference) is the
    user's.
**Fails when:** the reference is much weaker than the proxy: every excess is 0 and alpha stays. The last alpha is not
    the answer: read `result`.
**Cost:** O(T + D) a step, beside the forward pass of the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.rule import Batch, Rule, State, example_batches, means, softmax


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of DoReMi; `ValueError` for a value out of range."""

    step_size: float = 1.0  # eta, above 0
    smoothing: float = 1e-4  # eps, share of the even mixture, above 0 and at most 1
    vocab_size: int = 50_432  # its logarithm is the excess of a domain not met yet, at least 2

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; expected a number above 0")
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing is {self.smoothing}; expected a number above 0 and at most 1")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size is {self.vocab_size}; expected at least 2")


@method(title="DoReMi", year=2023)
class DoReMi(Rule):
    """Exponentiated gradient on the clipped excess loss."""

    def default(self) -> Config:
        """The released code's options."""
        return Config()

    def start(self) -> State:
        """Even weights."""
        even_D = np.full(self.domains, 1 / self.domains)
        first = math.log(self.config.vocab_size)
        excess_D = np.full(self.domains, first)
        one = np.array(1.0)
        return {"alpha": even_D, "excess": excess_D, "sum": even_D, "count": one}

    def step(self, state: State, batch: Batch) -> State:
        """The excess of the domains met, then alpha."""
        reference_T = batch.asked("reference_T", "DoReMi needs the losses of a reference model")
        excess_D = excess(batch.loss_T, reference_T, batch.domain_T, state["excess"])
        alpha_D = moved(state["alpha"], excess_D, self.config)
        total_D = state["sum"] + alpha_D
        count = state["count"] + 1
        return {"alpha": alpha_D, "excess": excess_D, "sum": total_D, "count": count}

    def weights(self, state: State) -> np.ndarray:
        """alpha: what the next loss is weighed by, see `token_weights`."""
        return state["alpha"]

    def result(self, state: State) -> np.ndarray:
        """The mean of alpha: what the large model's text is drawn by."""
        return state["sum"] / state["count"]


def excess(loss_T: np.ndarray, reference_T: np.ndarray, domain_T: np.ndarray, before_D: np.ndarray) -> np.ndarray:
    """lambda [D]: clipped token by token, before the mean."""
    above_T = loss_T - reference_T
    clipped_T = np.maximum(above_T, 0)
    return means(clipped_T, domain_T, before_D)


def moved(alpha_D: np.ndarray, excess_D: np.ndarray, config: Config) -> np.ndarray:
    """alpha after a step."""
    gain_D = config.step_size * excess_D
    sharp_D = softmax(np.log(alpha_D) + gain_D)
    even = config.smoothing / len(alpha_D)
    return (1 - config.smoothing) * sharp_D + even


def token_weights(alpha_D: np.ndarray, drawn_D: np.ndarray, domain_T: np.ndarray) -> np.ndarray:
    """w [T] of sum 1 for a batch drawn by the shares `drawn_D`: the proxy's loss is sum_t w_t l_t."""
    ratio_D = alpha_D / drawn_D
    weight_T = ratio_D[domain_T]
    return weight_T / weight_T.sum()


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Four domains."""
    return {"rule": DoReMi(4), "batches": example_batches(generator)}
