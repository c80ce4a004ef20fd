"""Simulated sessions have the shares of silence and overlap that were asked for, from session to session.

Paper: Property-Aware Multi-Speaker Data Simulation: A Probabilistic Modelling Technique for Synthetic Data Generation.
Tried: 60 sessions of four speakers and 300 seconds at 100 samples a second; how far the sorted shares of the sessions
are from the quantiles of the Beta asked for (means 0.15 and 0.1, variance 0.01), in the mean of silence and overlap.
Baseline: gaps and overlaps of fixed exponential laws with the same mean shares. Against it: a distance that is not half
as large, or a mean share that is off by 0.02.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator
from mixwell.data.sessions import Config, sessions, shares
from mixwell.data.waves import Sounds

CLAIM = Claim("Sessions have the statistics that were asked for.", "distance of the shares from those asked for",
              quantity="distance", at_least=0.5, relative=True, provided=(Comparison(quantity="bias", baseline=0.02),))
SESSIONS, LENGTH, SPEAKERS, WORDS = 60, 30_000, 4, 20
CONFIG = Config(length=LENGTH, gap_variance=9.0)


def voices(seed: int) -> Sounds:
    """Bursts of 0.1 to 0.6 seconds."""
    draws = generator(seed, "voices")
    samples = torch.randn(SPEAKERS, WORDS, 60, generator=draws)
    length = torch.randint(10, 61, (SPEAKERS, WORDS), generator=draws)
    return Sounds(samples, length)


def memoryless(rng: np.random.Generator) -> Tensor:
    """Turns whose gaps know nothing of the session: silence or overlap as often."""
    turns: list[list[int]] = []
    end = speaker = 0
    more = (1 - CONFIG.words_p) / CONFIG.words_p
    usual = 35 * (1 + CONFIG.words_k * more)
    silence = 2 * usual * CONFIG.silence / (1 - CONFIG.silence)
    overlap = 2 * usual * CONFIG.overlap / (1 + CONFIG.overlap)
    while end < LENGTH:
        said = 1 + rng.negative_binomial(CONFIG.words_k, CONFIG.words_p)
        size = 35 * said
        pause = rng.exponential(silence)
        shared = rng.exponential(overlap)
        if rng.random() < 0.5:
            start = round(end + pause)
        else:
            start = round(end - min(shared, size - 1, end))
        speaker = (speaker + 1) % SPEAKERS
        stop = start + size
        turns.append([speaker, start, min(stop, LENGTH)])
        end = max(end, stop)
    return torch.tensor(turns)


def scored(found: list[tuple[float, float]]) -> dict[str, float]:
    """Distance from the Beta's quantiles, and the larger error of the two means."""
    place = (np.arange(SESSIONS) + 0.5) / SESSIONS
    off, bias = [], []
    means = CONFIG.silence, CONFIG.overlap
    for share_R, mean in zip(zip(*found), means):
        size = mean * (1 - mean) / CONFIG.silence_variance - 1
        wanted = beta.ppf(place, mean * size, (1 - mean) * size)
        apart = np.sort(share_R) - wanted
        off.append(np.abs(apart).mean())
        middle = apart.mean()
        bias.append(abs(middle))
    return {"distance": float(np.mean(off)), "bias": float(max(bias))}


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Both simulators."""
    rng = np.random.default_rng([seed, 31])
    speech = voices(seed)
    aware, blind = [], []
    for _ in range(SESSIONS):
        made = sessions(speech, CONFIG, rng)
        aware.append(shares(made.turns, LENGTH))
        turns = memoryless(rng)
        blind.append(shares(turns, LENGTH))
    return {"method": scored(aware), "baseline": scored(blind)}
