"""Shortest answers first, by an order that was learnt: a small network ranks requests by how long they will talk.

**Equation:** answers of L tokens have the label y = floor(M / g) - floor(min(L, M) / g), so that short ones have large
    labels. Scores s of N requests with labels sorted downward (ties in random order) have the loss
        sum_i [log sum_{j >= i} exp(s_j) - s_i]                                                     (ListMLE)
    A step serves the S rows that come first by (priority, -score). A row that was idle for more than T steps has
    priority for the next R steps in which it is served (`scheduling.ranked`).
**Shapes:** features [N, F], scores and lengths [N].
**Reference:** Fu et al. 2024, Efficient LLM Scheduling by Learning to Rank (2408.15792), and the authors' code.
**Differs:** the ranker is a network of one hidden layer on features that the caller gives (by `describe`: hashed
    counts of a prompt's ids), where the authors tune OPT-125M on the prompt's text. What the loss adds inside the
    logarithm (1e-10) is left out. Rows that lose their place keep their keys and values.
**Fails when:** lengths do not hang on the prompt, or hardly vary: then any order is as good.
**Cost:** F H operations a request, once; a sort of the requests that are there a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of learning to rank requests."""

    hidden: int = 32  # H, of the ranker
    longest: int = 8192  # M: longer answers count as this long
    bucket: int = 10  # g: answers whose lengths differ by less are no pair to tell apart
    lr: float = 3e-3  # of Adam
    epochs: int = 30  # passes over the answers that are learnt from
    slate: int = 32  # N, requests that are ranked at once

    def __post_init__(self) -> None:
        check_least(self, hidden=1, longest=1, bucket=1, epochs=1, slate=2)
        check_above(self, lr=0)


def labels(lengths_N: Tensor, longest: int, bucket: int) -> Tensor:
    """Large where an answer is short: [N]."""
    cut_N = lengths_N.clamp(max=longest)
    return longest // bucket - cut_N // bucket


def list_mle(scores_N: Tensor, labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the log-likelihood, in nats, of the order of the labels under the scores."""
    shuffled_N = torch.randperm(len(scores_N), generator=generator)
    places_N = labels_N[shuffled_N].argsort(descending=True, stable=True)
    sorted_N = scores_N[shuffled_N][places_N]
    from_last_N = sorted_N.flip(0).logcumsumexp(0)
    loss_N = from_last_N.flip(0) - sorted_N
    return loss_N.sum()


def describe(ids: Sequence[int], width: int) -> Tensor:
    """A prompt's features [F]: log-counts of its ids, hashed to F - 1 places, and the log of its length."""
    buckets = torch.tensor(ids, dtype=torch.int64) % (width - 1)
    counts = torch.bincount(buckets, minlength=width - 1)
    size = torch.tensor([float(len(ids))])
    return torch.cat([counts.float(), size]).log1p()


@method(title="Learnt order of requests", paper="Efficient LLM Scheduling by Learning to Rank", year=2024)
class LearnedOrder(nn.Module):
    """Ranks requests by features; large scores are short answers."""

    def __init__(self, features: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.middle_F: Tensor
        self.spread_F: Tensor
        self.register_buffer("middle_F", torch.zeros(features))
        self.register_buffer("spread_F", torch.ones(features))
        self.inner = _linear(features, config.hidden, generator)
        self.outer = _linear(config.hidden, 1, generator)

    def forward(self, features_NF: Tensor) -> Tensor:
        """Scores [N]."""
        scaled_NF = (features_NF - self.middle_F) / self.spread_F
        hidden_NH = self.inner(scaled_NF).tanh()
        return self.outer(hidden_NH).squeeze(-1)

    def fit(self, features_NF: Tensor, lengths_N: Tensor, generator: torch.Generator) -> LearnedOrder:
        """Learn from requests whose answers' lengths are known; fewer than two raise `ValueError`."""
        if len(lengths_N) < 2:
            raise ValueError(f"{len(lengths_N)} answers to learn from; expected two or more")
        self.middle_F.copy_(features_NF.mean(0))
        self.spread_F.copy_(features_NF.std(0).clamp(min=1e-6))
        wanted_N = labels(lengths_N, self.config.longest, self.config.bucket)
        optimiser = torch.optim.Adam(self.parameters(), lr=self.config.lr)
        for _ in range(self.config.epochs):
            order_N = torch.randperm(len(lengths_N), generator=generator)
            for slate in order_N.split(self.config.slate):
                loss = list_mle(self(features_NF[slate]), wanted_N[slate], generator)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return self


def _linear(inner: int, outer: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inner, outer)
    bound = inner**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


def example(generator: torch.Generator) -> dict[str, Any]:
    """Requests whose lengths follow their first feature."""
    features_NF = torch.randn(24, 4, generator=generator)
    long_N = 40 * features_NF[:, 0].exp()
    lengths_N = long_N.ceil().long()
    return {"features_NF": features_NF, "lengths_N": lengths_N, "config": Config(hidden=4, epochs=2)}
