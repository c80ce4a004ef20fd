"""The contract of rules that choose domains while a model trains: a state and a batch's losses in, weights out.

A rule is a value without memory; what it knows is a state, arrays by name, which goes into a checkpoint as it is.
`Online` keeps the state for a training loop.

Legend: T tokens (or examples) of a batch, D domains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """What a step told of its tokens (or examples), before the model was updated."""

    domain_T: np.ndarray  # which domain, from 0
    loss_T: np.ndarray  # nats
    reference_T: np.ndarray | None = None  # nats, of a reference model
    was_right_T: np.ndarray | None = None  # whether the model before this training answered rightly
    is_right_T: np.ndarray | None = None  # whether the model in training does

    def asked(self, name: str, why: str) -> np.ndarray:
        """A column that not every batch has; `MixwellError` where it is missing."""
        column_T: np.ndarray | None = getattr(self, name)
        if column_T is None:
            raise MixwellError(f"the batch has no {name}: {why}.")
        return column_T


class Rule(ABC):
    """How weights follow what batches tell; a subclass is final."""

    def __init__(self, domains: int, config: Any = None) -> None:
        if domains < 2:
            raise MixwellError(f"{domains} domain came; a rule chooses among at least 2.")
        self.domains = domains
        self.config = config or self.default()

    @abstractmethod
    def default(self) -> Any:
        """The config where none is given."""

    @abstractmethod
    def start(self) -> State:
        """What is known before the first batch."""

    @abstractmethod
    def step(self, state: State, batch: Batch) -> State:
        """What is known after a batch; neither argument changes."""

    @abstractmethod
    def weights(self, state: State) -> np.ndarray:
        """Weights of the domains in the next step, [D], all above 0, of sum 1."""

    def result(self, state: State) -> np.ndarray:
        """Weights that the whole training speaks for: [D]; the last ones unless a rule says more."""
        return self.weights(state)

    def update(self, state: State, batch: Batch) -> State:
        """`step`, after a look at the batch: a wrong length, domain or number raises `MixwellError`."""
        check(batch, self.domains)
        return self.step(state, batch)


class Online:
    """A rule with its state, for a training loop."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._state = rule.start()

    @property
    def weights_D(self) -> np.ndarray:
        """Weights of the domains in the next step: [D]."""
        return self.rule.weights(self._state)

    @property
    def result_D(self) -> np.ndarray:
        """Weights that the training so far speaks for: [D]."""
        return self.rule.result(self._state)

    def update(self, batch: Batch) -> None:
        """Take in what a step told."""
        self._state = self.rule.update(self._state, batch)

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        found = {}
        for name, value in self._state.items():
            found[name] = value.copy()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; other names or shapes raise `MixwellError`."""
        expected = self.rule.start()
        if set(state) != set(expected):
            raise MixwellError(f"the state has {', '.join(sorted(state))}; expected {', '.join(sorted(expected))}.")
        found = {}
        for name, value in expected.items():
            given = np.array(state[name], dtype=np.float64)
            if given.shape != value.shape:
                raise MixwellError(f"{name} has the shape {given.shape}; expected {value.shape}, of as many domains.")
            found[name] = given
        self._state = found


def check(batch: Batch, domains: int) -> None:
    """Raise `MixwellError` for a batch that no rule can take."""
    count = len(batch.domain_T)
    if not count:
        raise MixwellError("the batch is empty.")
    for name, column_T in vars(batch).items():
        if column_T is None:
            continue
        if len(column_T) != count:
            raise MixwellError(f"{name} has {len(column_T)} entries where domain_T has {count}.")
        if not np.isfinite(column_T).all():
            raise MixwellError(f"{name} holds a number that is not finite; leave such tokens out of the batch.")
    low, high = batch.domain_T.min(), batch.domain_T.max()
    if low < 0 or high >= domains:
        raise MixwellError(f"domain_T goes from {low} to {high}; expected 0 to {domains - 1}.")


def counts(domain_T: np.ndarray, domains: int) -> np.ndarray:
    """Tokens of each domain: [D]."""
    return np.bincount(domain_T, minlength=domains).astype(np.float64)


def means(value_T: np.ndarray, domain_T: np.ndarray, absent_D: np.ndarray) -> np.ndarray:
    """Mean over each domain's tokens, [D]; where a domain has none, what `absent_D` says."""
    domains = len(absent_D)
    count_D = counts(domain_T, domains)
    sum_D = np.bincount(domain_T, weights=value_T, minlength=domains)
    mean_D = sum_D / np.maximum(count_D, 1.0)
    return np.where(count_D > 0, mean_D, absent_D)


def softmax(x_D: np.ndarray) -> np.ndarray:
    """exp(x) of sum 1."""
    shifted_D = x_D - x_D.max()
    weight_D = np.exp(shifted_D)
    return weight_D / weight_D.sum()


def example_batches(generator: np.random.Generator, domains: int = 4, count: int = 30) -> list[Batch]:
    """Batches of 64 tokens, losses falling at a rate of each domain's own, with all columns."""
    found = []
    for step in range(count):
        domain_T = generator.integers(domains, size=64)
        noise_T = generator.exponential(0.3, 64)
        height_T = 1.0 + domain_T
        level_T = height_T * np.exp(-step / 20)
        reference_T = 0.5 + generator.exponential(0.3, 64)
        was_T = generator.random(64) < 0.8
        damage_T = 0.1 + 0.1 * domain_T
        is_T = generator.random(64) > damage_T
        found.append(Batch(domain_T, level_T + noise_T, reference_T, was_T, is_T))
    return found
