"""Jacobi decoding: a window of guesses is read at once, what agrees with the model is kept, the rest guessed anew.

**Equation:** a row x_1..x_t, guesses y_1..y_w. One pass over [x_t, y_1..y_w] under the causal mask gives
    z_i = argmax p(. | x, y_<i), i = 1..w+1. z_1 is accepted, and z_{i+1} while y_i = z_i holds.
    With a of them accepted the next guesses are z_{a+1}, .., z_{w+1}, the last one repeated up to the window.
    The window at position s of an answer of at most n tokens: w(s) = w_first + (w_last - w_first) s / n, rounded,
    and never beyond what is left of the answer.
**Shapes:** ids are lists; the pass has 1 + w positions.
**Reference:** Zhang et al. 2023 (2311.08263), section 3; Santilli et al. 2023 (2305.10427) for the iteration.
**Differs:** guesses never enter the answer unverified, as the paper's approximate tokens may: the answer is the one of
    plain decoding. Where tokens are drawn rather than the likeliest taken, each position's token is drawn from the
    model's own law and a guess holds where it is what was drawn, so that the law is unchanged. The window shrinks in
    proportion to the position; the paper's sizes by position are not told.
**Fails when:** few guesses hold: each pass reads 1 + w positions for one token.
**Cost:** a pass over 1 + w positions for a tokens, 1 <= a <= w + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Jacobi decoding."""

    first: int = 6  # w_first: guesses at the beginning of an answer, 1 or more
    last: int = 3  # w_last: guesses at its end, 1 to first

    def __post_init__(self) -> None:
        if not 1 <= self.last <= self.first:
            raise ValueError(f"first is {self.first} and last is {self.last}; expected 1 <= last <= first")


def window(config: Config, position: int, longest: int) -> int:
    """Guesses at a position of an answer of at most `longest` tokens; none beyond its end."""
    share = position / max(1, longest)
    size = round(config.first + (config.last - config.first) * share)
    left = longest - position - 1  # the pass gives one token whatever the guesses are
    return max(0, min(size, left))


def renewed(predicted: Sequence[int], accepted: int) -> list[int]:
    """The guesses that a pass leaves: what it predicted behind the tokens that were accepted."""
    return list(predicted[accepted:])


@method(title="Jacobi decoding", paper="Fast Chain-of-Thought: A Glance of Future from Parallel Decoding Leads to "
        "Answers Faster", year=2023)
class Jacobi:
    """Guesses what a row says next from what the model predicted behind its last guesses."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.guesses: list[int] = []

    def draft(self, ids: Sequence[int], said: int, longest: int) -> list[int]:
        """Guesses for what follows `ids`, of which `said` are the answer so far."""
        size = window(self.config, said, longest)
        known = self.guesses[:size]
        filler = known[-1] if known else ids[-1]
        return known + [filler] * (size - len(known))

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """Take in a pass: the likeliest token behind each of its positions, and how many tokens were accepted."""
        self.guesses = renewed(predicted, accepted)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ids of a row."""
    ids = torch.randint(0, 50, (8,), generator=generator)
    return {"ids": ids.tolist(), "said": 2, "longest": 12}
