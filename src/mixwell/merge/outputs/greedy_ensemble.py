"""Greedy ensembles: each further member is trained to differ from the earlier ones, on inputs that are noise.

**Equation:** member k + 1 minimises CE + log sum_{j <= k} exp(-(lambda / M) mean_x |softmax f(x) - softmax f_j(x)|^2),
    x fixed noise N(mean, (5 std)^2) of each feature. Prediction: the mean of softmax. For a set of members the sum of
    kernels is submodular, so that adding greedily comes within 1 - 1/e of the best set.
**Shapes:** probabilities on N noise inputs [N, C].
**Reference:** Tiulpin and Blaschko 2021 (2105.14275), section 3, and the authors' code.
**Differs:** none.
**Fails when:** differences are asked for on training inputs: accuracy is lost.
**Cost:** one more forward and backward pass over the noise a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of greedy ensembles."""

    diversity: float = 1.0  # lambda
    members: int = 5  # M
    spread: float = 5.0  # of the noise, in standard deviations of the inputs

    def __post_init__(self) -> None:
        if self.members < 1 or self.spread <= 0 or self.diversity < 0:
            raise ValueError(f"members is {self.members}, spread {self.spread}, diversity {self.diversity}; expected 1 "
                             "or more, above 0, 0 or more")


def noise_like(inputs_ND: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """As many noise inputs as there are inputs: each feature's mean, and `spread` times its deviation."""
    deviation = inputs_ND.std(0)
    draws = torch.randn(inputs_ND.shape, generator=generator)
    return inputs_ND.mean(0) + spread * deviation * draws


@method(title="Greedy deep ensembles", paper="Greedy Bayesian Posterior Approximation with Deep Ensembles", year=2022)
def greedy_ensemble(own_NC: Tensor, earlier: Sequence[Tensor], config: Config) -> Tensor:
    """What is added to a member's loss for being like the earlier members: probabilities on the same noise.

    0 for the first member. Bounded: from log k - 2 lambda / M to log k for k earlier ones.
    """
    if not earlier:
        return own_NC.new_zeros(())
    rate = config.diversity / config.members
    apart = own_NC - torch.stack(list(earlier))
    squares = apart.square().sum(-1)
    distances = squares.mean(-1)
    return torch.logsumexp(-rate * distances, 0)


def prediction(members: Sequence[Tensor]) -> Tensor:
    """The mean of the members' probabilities [N, C]."""
    return torch.stack(list(members)).mean(0)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A member beside two earlier ones."""
    logits = torch.randn(3, 6, 4, generator=generator)
    own, *earlier = logits.softmax(-1)
    return {"own_NC": own, "earlier": earlier, "config": Config()}
