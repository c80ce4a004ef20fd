"""Sessions of several speakers whose shares of silence and overlap are drawn, and then kept while turns are taken.

**Equation:** a session's shares of silence m_s and of overlap m_o are Beta of a mean and a variance; words of a
    sentence 1 + NegBin(k, p); the next speaker stays with probability 1 - q, else is redrawn by dominance until it
    differs. Overlap where the speaker changes and O/V - m_o < S/T - m_s, of Gamma length with mean
    (m_o V - O) / (1 + m_o); silence otherwise, of mean (m_s T - S) / (1 - m_s). T samples so far, S silent, V = T - S,
    O of V spoken by two.
**Shapes:** words of speakers [P, W, L]; mixture [T], a stem of each speaker [P, T], turns [R, 3] (speaker, start, end).
**Reference:** Park et al. 2023 (2310.12371); constants of the released simulator (NeMo).
**Differs:** rooms, noise and far microphones are left out. T includes the sentence that is placed, so that the shares
    are met after each turn, not one later. Overlap is with the last turn alone, and no speaker's with itself.
**Fails when:** sessions are short: a few sentences cannot meet a share (below some four minutes of speech).
**Cost:** O(T P).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.waves import Sounds, check, levelled, placed
from mixwell.mixing import check_above, check_below, check_least, check_most


@dataclass(frozen=True, kw_only=True)
class Config:
    """Statistics of sessions; `ValueError` for a value out of range."""

    length: int = 9_600_000  # samples, at least 1: ten minutes at 16 kHz
    silence: float = 0.15  # mean of m_s, of the session, above 0 and below 1
    silence_variance: float = 0.01  # of m_s, 0 or more
    overlap: float = 0.1  # mean of m_o, of what is not silent, above 0 and below 1
    overlap_variance: float = 0.01  # of m_o, 0 or more
    gap_variance: float = 900.0  # of one silence or overlap, in samples squared, above 0
    turn: float = 0.875  # q, 0 to 1
    words_k: float = 0.4  # of the words in a sentence, above 0
    words_p: float = 0.05  # above 0 and at most 1
    dominance_std: float = 0.11  # of a speaker's share of turns, 0 or more
    least_dominance: float = 0.05  # of a speaker, 0 or more

    def __post_init__(self) -> None:
        check_least(self, length=1, turn=0, dominance_std=0, least_dominance=0, silence_variance=0, overlap_variance=0)
        check_above(self, silence=0, overlap=0, gap_variance=0, words_k=0, words_p=0)
        check_below(self, silence=1, overlap=1)
        check_most(self, turn=1, words_p=1)
        for name in ("silence", "overlap"):
            mean = getattr(self, name)
            check_below(self, **{f"{name}_variance": mean * (1 - mean)})


class Session(NamedTuple):
    """A mixture, its parts, who spoke when, and the shares that were asked for."""

    mixture: Tensor
    stems: Tensor
    turns: Tensor
    asked: Tensor  # silence, overlap


@dataclass
class _Running:
    """What a session is so far, in samples."""

    end: int = 0  # T
    silent: int = 0  # S
    overlapped: int = 0  # O
    speaker: int = -1
    before: int = 0  # where the turn before the last one ended


@method(title="Property-aware sessions of speakers", year=2023,
        paper="Property-Aware Multi-Speaker Data Simulation: A Probabilistic Modelling Technique for Synthetic Data "
              "Generation")
def sessions(voices: Sounds, config: Config, generator: np.random.Generator) -> Session:
    """One session of the speakers of `voices`, [P, W, L] words each; one speaker alone raises `MixwellError`."""
    check(voices)
    shape = tuple(voices.samples.shape)
    speakers = shape[0]
    if len(shape) != 3 or speakers < 2:
        raise MixwellError(f"voices have the shape {shape}; expected words of at least two speakers, [P, W, L].")
    silence = target(config.silence, config.silence_variance, generator)
    overlap = target(config.overlap, config.overlap_variance, generator)
    asked = silence, overlap
    share_P = dominance(speakers, config, generator)
    stems = torch.zeros(speakers, config.length)
    turns: list[list[int]] = []
    now = _Running()
    while now.end < config.length:
        speaker = following(now.speaker, share_P, config.turn, generator)
        wave = sentence(voices, speaker, config, generator)
        start = _start(now, speaker, len(wave), asked, config.gap_variance, generator)
        placed(stems[speaker], wave, start)
        end = min(now.end, config.length)
        if start < end:
            turns.append([speaker, start, end])
    return Session(stems.sum(0), stems, torch.tensor(turns), torch.tensor(asked))


def target(mean: float, variance: float, generator: np.random.Generator) -> float:
    """A session's own share, Beta with this mean and variance."""
    if not variance:
        return mean
    size = mean * (1 - mean) / variance - 1
    return float(generator.beta(mean * size, (1 - mean) * size))


def dominance(speakers: int, config: Config, generator: np.random.Generator) -> np.ndarray:
    """Shares of turns: [P], of sum 1."""
    drawn_P = generator.normal(1 / speakers, config.dominance_std, speakers)
    positive_P = np.maximum(drawn_P, 0)
    share_P = positive_P / max(positive_P.sum(), 1e-12)
    raised_P = np.maximum(share_P, config.least_dominance)
    if not raised_P.any():
        raised_P = np.ones(speakers)
    return raised_P / raised_P.sum()


def following(speaker: int, share_P: np.ndarray, turn: float, generator: np.random.Generator) -> int:
    """Who speaks next; at first (-1) anyone, by dominance."""
    if speaker >= 0 and generator.random() > turn:
        return speaker
    wanted_P = share_P.copy()
    if speaker >= 0:
        wanted_P[speaker] = 0
    if not wanted_P.any():
        return speaker
    chance_P = wanted_P / wanted_P.sum()
    return int(generator.choice(len(share_P), p=chance_P))


def sentence(voices: Sounds, speaker: int, config: Config, generator: np.random.Generator) -> Tensor:
    """Words of a speaker, drawn evenly, one after another, at a root mean square of 1."""
    count = 1 + generator.negative_binomial(config.words_k, config.words_p)
    words = voices.length.shape[1]
    which = generator.integers(words, size=count)
    said = [voices.one(speaker, word) for word in which.tolist()]
    return levelled(torch.cat(said))


def _start(now: _Running, speaker: int, size: int, asked: tuple[float, float], variance: float,
           generator: np.random.Generator) -> int:
    """Where a sentence begins; what the session is so far moves on."""
    silence, overlap = asked
    changed = now.speaker not in (-1, speaker)
    total = now.end + size
    spoken = total - now.silent
    lacks_overlap = now.overlapped / spoken - overlap
    lacks_silence = now.silent / total - silence
    if changed and lacks_overlap < lacks_silence:
        wanted = gap((overlap * spoken - now.overlapped) / (1 + overlap), variance, generator)
        room = now.end - now.before  # the last speaker alone may be overlapped
        shared = min(wanted, room, size - 1)
        now.overlapped += shared
        start = now.end - shared
    else:
        wanted = gap((silence * total - now.silent) / (1 - silence), variance, generator)
        now.silent += wanted
        start = now.end + wanted
    now.before, now.end, now.speaker = now.end, start + size, speaker
    return start


def gap(mean: float, variance: float, generator: np.random.Generator) -> int:
    """Samples of a silence or an overlap: Gamma with this mean and variance, 0 where none is lacking."""
    if mean <= 0:
        return 0
    shape = mean**2 / variance
    drawn = generator.gamma(shape, variance / mean)
    return round(drawn)


def shares(turns: Tensor, length: int) -> tuple[float, float]:
    """Share of a session that is silent, and share of the rest in which two or more speak."""
    speaking_PT = active(turns, length)
    count_T = speaking_PT.sum(0)
    spoken = torch.count_nonzero(count_T).item()
    both = torch.count_nonzero(count_T > 1).item()
    silence = 1 - spoken / length
    return silence, both / max(spoken, 1)


def active(turns: Tensor, length: int) -> Tensor:
    """Who speaks when, [P, T] of booleans: labels of diarisation, or of voice activity where any does."""
    last = turns[:, 0].max().item()
    speakers = int(last) + 1
    found = torch.zeros(speakers, length, dtype=torch.bool)
    for speaker, start, end in turns.tolist():
        found[speaker, start:end] = True
    return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two speakers of five short words."""
    samples = torch.randn(2, 5, 12, generator=generator)
    length = torch.randint(6, 13, (2, 5), generator=generator)
    voices = Sounds(samples, length)
    config = Config(length=600, gap_variance=1.0)
    draws = np.random.default_rng(3)
    return {"voices": voices, "config": config, "generator": draws}
