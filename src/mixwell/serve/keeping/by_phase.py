"""Prompt and answer kept apart: the prompt's choice is made once and stays, the answer's is made anew as it grows.

**Equation:** prompt: the last r positions and the a - r with the largest sums of weights over all its queries stay for
    good. Answer: where it has W positions or more, the last `recent` stay and, of the others, the W - recent that the
    CURRENT query looks at most. slide: W at every step. adaptive: W_t = recent + floor(t / d) up to W, with
    d = max(1, floor((longest - recent) / (W - recent))). discontinuous: as adaptive, chosen anew every d steps, so that
    the answer grows in between.
**Shapes:** keys and values [B, G, S, P]; t tokens of the answer so far.
**Reference:** Wu et al. 2024, SCOPE (2412.13649), sections 3.2 and 3.3, and the authors' code.
**Differs:** steps are counted by each layer for itself, where the code divides one count by the layers. Heads that
    share keys share their choice.
**Fails when:** answers are shorter than W: nothing is ever chosen.
**Cost:** a + W positions; to see the weights attention is computed S / P times more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.keeping.rules import Kept, Rule, best_and_last

Pace = Literal["slide", "adaptive", "discontinuous"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of keeping by phase."""

    prompt: int = 256  # a, positions of the prompt that stay
    prompt_recent: int = 32  # r, of these the last ones
    answer: int = 128  # W, positions of the answer
    recent: int = 64  # of these the last ones, below W
    longest: int = 1024  # tokens of an answer that the pace is set for
    pace: Pace = "slide"

    def __post_init__(self) -> None:
        check_least(self, prompt_recent=1, recent=1, longest=1)
        if self.prompt < self.prompt_recent:
            raise ValueError(f"prompt is {self.prompt}; expected at least prompt_recent, {self.prompt_recent}")
        if self.answer <= self.recent:
            raise ValueError(f"answer is {self.answer}; expected more than recent, {self.recent}")
        if self.pace not in ("slide", "adaptive", "discontinuous"):
            raise ValueError(f"pace is {self.pace!r}; expected slide, adaptive or discontinuous")

    @property
    def period(self) -> int:
        """d: steps after which an answer may keep a position more."""
        spread = (self.longest - self.recent) // (self.answer - self.recent)
        return max(1, spread)


def allowed(config: Config, step: int) -> int:
    """Positions of the answer that stay at a step of it."""
    if config.pace == "slide":
        return config.answer
    grown = config.recent + step // config.period
    return min(config.answer, grown)


@method(title="Kept by phase", paper="SCOPE: Optimizing Key-Value Cache Compression in Long-context Generation",
        year=2024)
class ByPhase(Rule):
    """Keeps the prompt's heavy hitters, and of the answer what the current query looks at."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fixed = 0  # positions of the prompt that stay
        self.step = 0  # tokens of the answer

    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """The prompt's heavy hitters and its last positions."""
        recent = self.config.prompt_recent
        best = self.config.prompt - recent
        places = best_and_last(weights_BGTS.sum(2), best, recent)
        self.fixed, self.step = places.shape[-1], 0
        return kept.at(places)

    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """The prompt's positions, and of the answer as many as the pace allows."""
        config = self.config
        self.step += 1
        if config.pace == "discontinuous" and self.step % config.period:
            return kept
        answer_BGS = weights_BGS[..., self.fixed :]
        most = allowed(config, self.step)
        best = most - config.recent
        chosen = best_and_last(answer_BGS, best, config.recent)
        B, G, _ = chosen.shape
        fixed = torch.arange(self.fixed)
        prompt = fixed.expand(B, G, -1)
        behind = chosen + self.fixed
        places = torch.cat([prompt, behind], -1)
        return kept.at(places)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four positions of the prompt, three of the answer."""
    return {"config": Config(prompt=4, prompt_recent=1, answer=3, recent=1, longest=9)}
