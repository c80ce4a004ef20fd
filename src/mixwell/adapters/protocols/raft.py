"""RAFT, reward-ranked tuning: a model is tuned on those of its own samples that a reward ranks highest, round by round.

**Equation:** a round takes the next prompts x of one shuffled order, draws y ~ model(x), and tunes on the pairs kept:
    local: `prompts` of them, round(1 / share) samples each, the best of each kept;
    top: ceil(prompts / share) of them, one sample each, the best `prompts` of all kept.
    The reward told of a round is the mean over its first samples, none chosen.
**Shapes:** prompts and samples of any kind; rewards [M, K] of M prompts and K samples; the rounds' rewards [R].
**Reference:** Dong et al. 2023 (2304.06767); Diao et al. 2023, LMFlow (2306.12420), and its released aligner.
**Differs:** drawing, reward and tuning are handed in as functions; `decoder.Decoder` has the first and the last of them
    for a language model. Samples are not thrown away for their form: let the reward say so.
**Fails when:** top: easy prompts win every place, and hard ones are forgotten while the reward rises. No term holds the
    model to where it started.
**Cost:** prompts / share samples and rewards a round, and the tuning on `prompts` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

Draw = Callable[[list[Any], int], Sequence[Sequence[Any]]]  # prompts, samples of each -> the samples
Reward = Callable[[Any, Any], float]  # prompt, sample -> how good
Learn = Callable[[list[tuple[Any, Any]]], None]  # tunes the model on pairs of prompt and sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of RAFT."""

    rounds: int = 8  # R
    prompts: int = 128  # pairs that a round learns from
    share: float = 0.125  # of the samples that are kept, above 0 and at most 1
    strategy: Literal["local", "top"] = "local"  # the best of each prompt, or the best of all

    def __post_init__(self) -> None:
        check_least(self, rounds=1, prompts=1)
        check_above(self, share=0)
        if self.share > 1:
            raise ValueError(f"share is {self.share}; expected above 0, at most 1")

    @property
    def asked(self) -> tuple[int, int]:
        """(prompts of a round, samples of each)."""
        if self.strategy == "local":
            return self.prompts, round(1 / self.share)
        return math.ceil(self.prompts / self.share - 1e-9), 1


class Rounds(NamedTuple):
    """Mean rewards of the rounds [R]: of first samples, and of those learned from."""

    reward_R: Tensor
    kept_R: Tensor


def ranked(rewards_MK: Tensor, config: Config) -> list[tuple[int, int]]:
    """(prompt, sample) of those kept; of equal rewards the first."""
    if config.strategy == "local":
        best_M = rewards_MK.argmax(1)
        return list(enumerate(best_M.tolist()))
    order = rewards_MK[:, 0].argsort(descending=True, stable=True)
    best = order[: config.prompts]
    return [(place, 0) for place in best.tolist()]


def rewards_of(prompts: Sequence[Any], samples: Sequence[Sequence[Any]], reward: Reward) -> Tensor:
    """Rewards [M, K], float64; `MixwellError` for one that is not finite, and for samples that are missing."""
    counts = {len(own) for own in samples}
    if len(samples) != len(prompts) or len(counts) != 1:
        raise MixwellError(f"samples came for {len(samples)} of {len(prompts)} prompts, {sorted(counts)} of each; "
                           "expected as many of every prompt.")
    rows = []
    for prompt, own in zip(prompts, samples):
        rows.append([float(reward(prompt, one)) for one in own])
    found = torch.tensor(rows, dtype=torch.float64)
    if not bool(found.isfinite().all()):
        raise MixwellError("a reward is not finite; expected a number for every sample.")
    return found


@method(
    title="RAFT, reward-ranked tuning",
    paper="LMFlow: An Extensible Toolkit for Finetuning and Inference of Large Foundation Models",
    year=2023,
)
def raft(prompts: Sequence[Any], config: Config, generator: torch.Generator, *, draw: Draw, reward: Reward,
         learn: Learn) -> Rounds:
    """Tune a model by rounds, through the functions handed in.

    Raises `MixwellError` for fewer prompts than the rounds use up, and for rewards that are not finite.
    """
    count, samples = config.asked
    needed = config.rounds * count
    if len(prompts) < needed:
        raise MixwellError(f"{len(prompts)} prompts came, and {config.rounds} rounds of {count} use {needed}, each "
                           "once; give more, or ask less of a round.")
    order = torch.randperm(len(prompts), generator=generator).tolist()
    first: list[float] = []
    kept: list[float] = []
    for start in range(0, needed, count):
        own = [prompts[place] for place in order[start : start + count]]
        drawn = draw(own, samples)
        rewards_MK = rewards_of(own, drawn, reward)
        chosen = ranked(rewards_MK, config)
        pairs = [(own[place], drawn[place][sample]) for place, sample in chosen]
        learn(pairs)
        best = [float(rewards_MK[pair]) for pair in chosen]
        unchosen = rewards_MK[:, 0].mean()
        first.append(float(unchosen))
        kept.append(sum(best) / len(best))
    return Rounds(torch.tensor(first), torch.tensor(kept))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Numbers as prompts, samples that count up from them, the reward of being even; nothing learns."""
    prompts = torch.randint(10, (6,), generator=generator)
    return {"prompts": prompts, "config": Config(rounds=3, prompts=2, share=0.5), "generator": generator,
            "draw": _counted, "reward": _even, "learn": _forget}


def _counted(prompts: list[Any], count: int) -> list[list[int]]:
    starts = [int(prompt) for prompt in prompts]
    return [list(range(start, start + count)) for start in starts]


def _even(prompt: Any, sample: Any) -> float:
    odd = int(sample) % 2
    return 1.0 - odd


def _forget(pairs: list[tuple[Any, Any]]) -> None:
    """Learn nothing."""
