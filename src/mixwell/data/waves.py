"""Sounds as rows of samples: their level, and mixtures of which every part is known.

Legend: N sounds, L samples of the longest, T samples of a mixture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError


class Sounds(NamedTuple):
    """Sounds of unequal length, each filled up to the longest."""

    samples: Tensor  # [..., L]
    length: Tensor  # [...]

    def one(self, *place: int) -> Tensor:
        """One of them, without what fills it up."""
        end = int(self.length[place])
        return self.samples[place][:end]


def check(sounds: Sounds) -> None:
    """Raise `MixwellError` for sounds that are empty, silent, not finite or longer than their row."""
    samples, length = sounds
    *each, most = samples.shape
    came = list(length.shape)
    if came != each or not length.numel():
        raise MixwellError(f"sounds of shape {[*each, most]} came with lengths of shape {came}; expected a length for "
                           "each.")
    shortest, longest = length.min(), length.max()
    if shortest < 1 or longest > most:
        raise MixwellError(f"lengths go from {shortest:g} to {longest:g}; expected 1 to {most} samples.")
    if not torch.isfinite(samples).all():
        raise MixwellError("a sound holds a number that is not finite.")
    place_L = torch.arange(most)
    inside = place_L < length[..., None]
    heard = inside & (samples != 0)
    silent = torch.nonzero(~heard.any(-1))
    if len(silent):
        first = silent[0].tolist()
        raise MixwellError(f"sound {first} is silent.")


def levelled(wave: Tensor) -> Tensor:
    """The sound at a root mean square of 1."""
    power = wave.square().mean()
    return wave / power.sqrt()


def factor(decibels: float) -> float:
    """What a sound is multiplied by for so many decibels."""
    return 10 ** (decibels / 20)


def placed(onto: Tensor, wave: Tensor, start: int) -> None:
    """Add a sound from a sample on, in place; what goes beyond the end is left out."""
    room = max(0, len(onto) - start)
    seen = wave[:room]
    end = start + len(seen)
    onto[start:end] += seen
