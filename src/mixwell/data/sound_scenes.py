"""Sound scenes with their captions: single sounds put together so that order, loudness, number and speaker are known.

**Equation:** m ~ U{1..M} events of distinct classes, n_i ~ U{1..R} times the sound x_i in a row; an event begins after
    the last one's end and a gap ~ U(0, g), or with it. Mixture = c sum_i 10^(d_i / 20) x_i / rms(x_i), d_i ~ U(d, 0) in
    decibels; c = min(1, 1 / peak), one for all.
**Shapes:** sounds [N, L] with classes [N] and speakers [N] (-1: nobody); mixture [T], a stem of each event [E, T], and
    a row an event (sound, class, speaker, count, together, start, end).
**Reference:** Xu et al. 2024, "A Detailed Audio-Text Data Simulation Pipeline using Single-Event Sounds".
**Differs:** read in its abstract: ranges are ours. Captions come from templates, several of each; `facts` is the plain
    list that a language model can be asked to put into words, as the paper does.
**Fails when:** an event lies so far below the others that nobody hears what its caption tells (`quietest`).
**Cost:** O(E T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.waves import Sounds, check, factor, levelled, placed
from mixwell.mixing import check_least, check_most

TIMES = ("once", "twice", "three times", "four times", "five times")
LOUD = ("softly", "moderately", "loudly")  # thirds of the range of decibels
AFTER = (", then ", ", followed by ", " and after that ")
WITH = (" while ", " and at the same time ", " as ")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Ranges of scenes; `ValueError` for a value out of range."""

    events: int = 4  # M, at least 1
    repeats: int = 3  # R, 1 to 5
    gap: int = 16_000  # g: samples of silence between events at most, 0 or more
    between: int = 1_600  # samples between an event's repeats, 0 or more
    together: float = 0.3  # chance that an event begins with the one before it, 0 to 1
    quietest: float = -12.0  # d: decibels, -30 to 0

    def __post_init__(self) -> None:
        check_least(self, events=1, repeats=1, gap=0, between=0, together=0, quietest=-30)
        check_most(self, repeats=len(TIMES), together=1, quietest=0)


class Library(NamedTuple):
    """Single sounds, what each is of, and who makes it."""

    sounds: Sounds
    classes_N: Tensor
    speakers_N: Tensor


class Scene(NamedTuple):
    """A mixture, its parts as they stand in it, and what is known of its events in their order."""

    mixture: Tensor
    stems: Tensor
    events: Tensor  # [E, 7]: sound, class, speaker, count, together with the one before, start, end
    decibels: Tensor  # [E]
    scale: Tensor  # c


@method(title="Sound scenes with captions", year=2024,
        paper="A Detailed Audio-Text Data Simulation Pipeline using Single-Event Sounds")
def sound_scenes(library: Library, config: Config, generator: np.random.Generator) -> Scene:
    """One scene; a library whose parts differ in length raises `MixwellError`."""
    check_library(library)
    chosen = drawn_sounds(library, config, generator)
    rows: list[list[int]] = []
    waves = []
    start = end = 0
    for sound in chosen:
        count = int(generator.integers(1, config.repeats + 1))
        wave = repeated(library.sounds.one(sound), count, config.between)
        later = generator.random() >= config.together
        gap = int(generator.integers(config.gap + 1))
        if rows and later:
            start = end + gap
        stop = start + len(wave)
        end = max(end, stop)
        kind = int(library.classes_N[sound])
        speaker = int(library.speakers_N[sound])
        together = bool(rows) and not later
        rows.append([sound, kind, speaker, count, together, start, stop])
        waves.append(wave)
    decibels = generator.uniform(config.quietest, 0, len(rows))
    return mixed(rows, waves, decibels, end)


def check_library(library: Library) -> None:
    """Raise `MixwellError` for a library that no scene can be made of."""
    sounds, classes_N, speakers_N = library
    check(sounds)
    sizes = len(sounds.length), len(classes_N), len(speakers_N)
    least, most = min(sizes), max(sizes)
    if least < most:
        raise MixwellError(f"sounds, classes and speakers are {sizes}; expected as many of each.")


def drawn_sounds(library: Library, config: Config, generator: np.random.Generator) -> list[int]:
    """Sounds of distinct classes, in the order in which they begin."""
    class_N = library.classes_N.numpy()
    kinds = np.unique(class_N)
    most = min(config.events, len(kinds))
    count = generator.integers(1, most + 1)
    chosen = []
    for kind in generator.choice(kinds, count, replace=False):
        own = np.flatnonzero(class_N == kind)
        sound = generator.choice(own)
        chosen.append(int(sound))
    return chosen


def repeated(wave: Tensor, count: int, between: int) -> Tensor:
    """The sound at a root mean square of 1, so many times with pauses."""
    one = levelled(wave)
    pause = torch.zeros(between)
    parts = [one]
    for _ in range(count - 1):
        parts += [pause, one]
    return torch.cat(parts)


def mixed(rows: list[list[int]], waves: list[Tensor], decibels: np.ndarray, length: int) -> Scene:
    """The events in one mixture whose peak is 1 at most."""
    stems = torch.zeros(len(rows), length)
    for stem, row, wave, level in zip(stems, rows, waves, decibels):
        start = row[5]
        placed(stem, factor(level) * wave, start)
    whole = stems.sum(0)
    peak = whole.abs().max()
    scale = 1 / peak.clamp(min=1)
    events = torch.tensor(rows)
    levels = torch.tensor(decibels)
    return Scene(scale * whole, scale * stems, events, levels, scale)


def loudness(decibels: float, quietest: float) -> str:
    """The word for an event's level: thirds of the range."""
    share = 1 - decibels / min(quietest, -1e-9)
    third = int(share * len(LOUD))
    return LOUD[min(third, len(LOUD) - 1)]


def facts(scene: Scene, names: Sequence[str], quietest: float, speakers: Sequence[str] = ()) -> list[str]:
    """What is known of each event, one after another: `dog bark, twice, loudly, after the one before`."""
    found: list[str] = []
    for row, level in zip(scene.events.tolist(), scene.decibels.tolist()):
        _, kind, speaker, count, together, *_ = row
        parts = [names[kind], TIMES[count - 1], loudness(level, quietest)]
        if 0 <= speaker < len(speakers):
            parts.append(f"by {speakers[speaker]}")
        if found:
            parts.append("together with the one before" if together else "after the one before")
        found.append(", ".join(parts))
    return found


def caption(scene: Scene, names: Sequence[str], quietest: float, generator: np.random.Generator,
            speakers: Sequence[str] = ()) -> str:
    """One sentence of a template: every event with its count, loudness and speaker, in order."""
    words = ""
    for row, level in zip(scene.events.tolist(), scene.decibels.tolist()):
        _, kind, speaker, count, together, *_ = row
        said = f"{names[kind]} {TIMES[count - 1]} {loudness(level, quietest)}"
        if 0 <= speaker < len(speakers):
            said += f" from {speakers[speaker]}"
        if words:
            joints = WITH if together else AFTER
            words += str(generator.choice(joints))
        words += said
    return words[0].upper() + words[1:] + "."


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three sounds of three classes."""
    samples = torch.randn(3, 20, generator=generator)
    length = torch.tensor([12, 20, 15])
    kinds = torch.arange(3)
    library = Library(Sounds(samples, length), kinds, kinds - 1)
    config = Config(events=3, gap=8, between=2)
    draws = np.random.default_rng(5)
    return {"library": library, "config": config, "generator": draws}
