"""Mixture of prompts: where tasks differ by region, local demonstrations and instructions beat one prompt as long.

Paper: One Prompt is not Enough: Automated Construction of a Mixture-of-Expert Prompts.
Tried: a stand-in for a language model: it answers by kernel regression on the demonstrations in its prompt, turned by
one of eight angles, which is its instruction. Four regions of the plane have a linear map and an angle each. Experts of
four demonstrations out of 80, instructions proposed from five examples, against one prompt with as many demonstrations
as all experts have and the best of the same proposals; mean squared error on 400 queries. Beside: experts with
demonstrations drawn at random. Against it: an error that is no lower.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.adapters.protocols.prompts import Config, Mixture, prompts
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator

CLAIM = Claim("A mixture of prompts beats one prompt as long.", "mean squared error")
REGIONS, TURNS, EACH = 4, 8, 4
WIDTH = 0.7  # of the kernel


class Rows(NamedTuple):
    """Inputs, answers as demonstrations show them, and as they are wanted, [N, 2] each."""

    x: Tensor
    shown: Tensor
    wanted: Tensor


def turned(y: Tensor, turns: Tensor) -> Tensor:
    """Rows [N, 2] turned by so many eighths each."""
    angles = turns * (2 * torch.pi / TURNS)
    lengths = torch.ones_like(angles)
    phase = torch.polar(lengths, angles)
    rows = y.contiguous()
    numbers = torch.view_as_complex(rows)
    return torch.view_as_real(numbers * phase)


def drawn(seed: int, name: str, count: int) -> Rows:
    """Rows of a seed's regions."""
    world = generator(seed, "world")
    centres = 3 * torch.randn(REGIONS, 2, generator=world)
    maps = torch.randn(REGIONS, 2, 2, generator=world)
    turns = torch.randperm(TURNS, generator=world).float()
    draws = generator(seed, name)
    region = torch.randint(REGIONS, (count,), generator=draws)
    z = torch.randn(count, 2, generator=draws)
    own = maps[region]
    shown = torch.einsum("nij,nj->ni", own, z)
    wanted = turned(shown, turns[region])
    x = centres[region] + z
    return Rows(x, shown, wanted)


class StandIn:
    """What answers queries from demonstrations and an instruction."""

    def __init__(self, demos: Rows, queries: Rows) -> None:
        self.demos, self.queries = demos, queries

    def error(self, instruction: int | None, places: list[int], asked: list[int]) -> float:
        """Mean squared error on the queries asked."""
        turn = torch.full((len(asked),), float(instruction or 0))
        wanted = self.queries.wanted[asked]
        said = torch.zeros_like(wanted)
        if places:
            known = self.demos.x[places]
            apart = torch.cdist(self.queries.x[asked], known)
            scaled = apart / WIDTH
            logits = -(scaled**2) / 2
            said = logits.softmax(1) @ self.demos.shown[places]
        answer = turned(said, turn)
        off = answer - wanted
        return float(off.square().mean())

    def score(self, instruction: int | None, places: list[int], asked: list[int]) -> float:
        """The higher the better; without demonstrations all are alike."""
        return -self.error(instruction, places, asked)

    def propose(self, places: list[int]) -> int:
        """The instruction that fits these examples best."""
        shown, wanted = self.demos.shown[places], self.demos.wanted[places]
        found = []
        for turn in range(TURNS):
            every = shown.new_full((len(shown),), turn)
            said = turned(shown, every)
            off = said - wanted
            found.append(off.square().mean())
        errors = torch.stack(found)
        return int(errors.argmin())


def mixed(made: Mixture, model: StandIn) -> float:
    """Error of a mixture, each query by its expert."""
    routed = made.expert_of(model.queries.x)
    every = routed.tolist()
    total = 0.0
    for expert, own in enumerate(made.demos_Km.tolist()):
        asked = [place for place, chosen in enumerate(every) if chosen == expert]
        instruction = made.instructions[expert]
        if asked:
            off = model.error(instruction, own, asked)
            total += len(asked) * off
    return total / len(every)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The mixture, one prompt with as many demonstrations in sum, and a mixture whose demonstrations are drawn."""
    demos, chosen_on = drawn(seed, "demos", 80), drawn(seed, "choose", 80)
    test = drawn(seed, "test", 400)
    choosing, testing = StandIn(demos, chosen_on), StandIn(demos, test)
    config = Config(demos=EACH, candidates=TURNS)

    def made(options: Config) -> Mixture:
        draws = generator(seed, "prompts")
        return prompts(demos.x, chosen_on.x, options, draws, propose=choosing.propose, score=choosing.score)

    several = made(config)
    experts = len(several.centres_KD)
    every = EACH * experts
    whole = Config(most=1, demos=every, candidates=TURNS, queries=80)
    single = made(whole)
    places = torch.randperm(80, generator=generator(seed, "random"))
    chosen = places[:every]
    random = several._replace(demos_Km=chosen.view(experts, EACH))
    mixtures = {"method": several, "baseline": single, "random": random}
    return {name: mixed(one, testing) for name, one in mixtures.items()}
