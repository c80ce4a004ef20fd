"""Collaborative decoding over scales: a large model draws the coarse maps of tokens, a small one the fine ones.

**Equation:** scales s = 0 .. S-1 of n_s tokens, the tokens of one scale drawn at once from p(r_s | r_0 .. r_{s-1}). The
    drafter's law is taken for s < N, the refiner's from N on; it reads all drafted scales anew, in one pass. Guided:
    t = guidance s / (S - 1), logits (1 + t) conditional - t unconditional. Each token by temperature (one for the first
    `warm` scales, one for the rest), the top_k best, the smallest set of mass top_p.
**Shapes:** r_s int64 [n_s]; laws [n_s, V].
**Reference:** Chen et al. 2024 (2411.17787), section 3.2, and the authors' code (infer_CoDe.py).
**Differs:** any models over any scales, as functions of the coarser maps; how tokens become features of the next scale
    is the models' own matter. Nothing is verified: the result has neither model's law. Fine-tuning each on its own
    scales is left to training.
**Fails when:** the refiner is as far behind on coarse scales as on fine ones, so that nothing is gained by sharing; a
    cache is handed over: keys and values of one model say nothing to the other.
**Cost:** the drafter reads n_0 .. n_{N-1}, the refiner all, those of the drafter in one pass; two passes each where
    guided. `costs` counts both and what their caches hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.lm.generate import check_options, sample
from mixwell.mixing import check_above, check_least

Law = Callable[[Sequence[Tensor]], Tensor]  # the logits [n_s, V] of the scale behind the maps given


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of collaborative decoding."""

    drafts: int = 8  # N, scales that the drafter draws; at least the number of scales: it draws all, 0: none
    guidance: float = 0.0  # t at the last scale; 0: conditional laws alone
    top_k: int = 0  # tokens that are drawn from; 0: all
    top_p: float = 1.0  # the mass that is drawn from
    temperature: float = 1.0  # of fine scales
    warm_temperature: float = 1.0  # of the first scales
    warm: int = 0  # scales that have it

    def __post_init__(self) -> None:
        check_least(self, drafts=0, guidance=0, warm=0)
        check_above(self, temperature=0, warm_temperature=0)
        try:
            check_options(0, self.temperature, self.top_k, self.top_p)
        except MixwellError as error:
            raise ValueError(str(error)) from error


class Model(NamedTuple):
    """A model over scales; the unconditional law is asked for where guidance is."""

    conditional: Law
    unconditional: Law | None = None


class Costs(NamedTuple):
    """What a decoding takes of one of two models."""

    passes: int
    tokens: int  # read, over all passes
    cached: int  # tokens whose keys and values it holds at the end


class Decoded(NamedTuple):
    """The maps of all scales, and what each model took."""

    maps: list[list[int]]
    drafter: Costs
    refiner: Costs


def guided(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """(1 + t) conditional - t unconditional, logits [n, V]."""
    away = conditional - unconditional
    return conditional + strength * away


def strength_of(scale: int, scales: int, guidance: float) -> float:
    """t of a scale: 0 at the first, `guidance` at the last; of a single one all of it."""
    if scales == 1:
        return guidance
    share = scale / (scales - 1)
    return guidance * share


def costs(sizes: Sequence[int], drafts: int, guided_too: bool = False) -> tuple[Costs, Costs]:
    """What drafter and refiner take for scales of `sizes` tokens."""
    count = min(drafts, len(sizes))
    twice = 2 if guided_too else 1
    coarse, whole = sum(sizes[:count]), sum(sizes)
    passes = len(sizes) - count
    read = whole if passes else 0
    drafter = Costs(twice * count, twice * coarse, twice * coarse)
    return drafter, Costs(twice * passes, twice * read, twice * read)


def logits_of(model: Model, coarser: Sequence[Tensor], size: int, scales: int, config: Config) -> Tensor:
    """The logits [n_s, V] of the next scale; a law of another shape raises `MixwellError`."""
    found = model.conditional(coarser)
    if found.ndim != 2 or len(found) != size:
        raise MixwellError(f"scale {len(coarser)} has {size} tokens; its law came as {list(found.shape)}, expected "
                           f"[{size}, V].")
    if not config.guidance:
        return found
    if model.unconditional is None:
        raise MixwellError("guidance needs a model's unconditional law; hand it in, or set guidance to 0.")
    other = model.unconditional(coarser)
    strength = strength_of(len(coarser), scales, config.guidance)
    return guided(found, other, strength)


@method(title="Collaborative decoding over scales",
        paper="Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient", year=2024)
def scale_decoding(drafter: Model, refiner: Model, sizes: Sequence[int], config: Config,
                   generator: torch.Generator) -> Decoded:
    """Draw the maps of all scales, coarse ones by the drafter and fine ones by the refiner.

    sizes: tokens of each scale. Raises `MixwellError` for no scales, for a law of another shape and for guidance
    without an unconditional law.
    """
    if not sizes or min(sizes) < 1:
        raise MixwellError(f"sizes are {list(sizes)}; expected the tokens of each scale, at least one.")
    maps: list[Tensor] = []
    for scale, size in enumerate(sizes):
        model = drafter if scale < config.drafts else refiner
        logits = logits_of(model, maps, size, len(sizes), config)
        warm = scale < config.warm
        temperature = config.warm_temperature if warm else config.temperature
        drawn = sample(logits, generator, temperature=temperature, top_k=config.top_k, top_p=config.top_p)
        maps.append(drawn)
    coarse, fine = costs(sizes, config.drafts, config.guidance > 0)
    return Decoded([drawn.tolist() for drawn in maps], coarse, fine)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two models of three scales whose laws look at the last token of the scale before."""
    table = torch.randn(5, 5, generator=generator)
    sizes = (1, 4, 9)

    def law(coarser: Sequence[Tensor]) -> Tensor:
        last = int(coarser[-1][-1]) if coarser else 0
        size = sizes[len(coarser)]
        return table[last].expand(size, -1)

    def flat(coarser: Sequence[Tensor]) -> Tensor:
        size = sizes[len(coarser)]
        return torch.zeros(size, 5)

    return {"drafter": Model(law), "refiner": Model(flat), "sizes": sizes, "config": Config(drafts=2),
            "generator": generator}
