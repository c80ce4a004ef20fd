"""Infilling is not free: text whose spans were moved to its end teaches less of what comes next in plain text.

Paper: CodeGen2: Lessons for Training LLMs on Programming and Natural Languages.
Tried: Markov text of 40 signs with memory two, documents of 200; counts of triples, backed off to pairs and single
signs, from 60 documents; nats a sign on 60 fresh plain documents. Method: half of the documents with two spans of ten
moved to their ends. Baseline: all plain, as many signs in all. Against it: a loss that is not a thousandth higher.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.data.infilling import Config, infilling

CLAIM = Claim("Infilling costs loss from left to right.", "nats a sign", lower_is_better=False, at_least=0.001,
              relative=True)
SIGNS, LENGTH, DOCUMENTS = 40, 200, 60
CONFIG = Config(mask=SIGNS, eos=SIGNS + 2, sep=SIGNS + 3, eom=SIGNS + 4)
EVERY = SIGNS + 5
Texts = list[np.ndarray]


def texts(rng: np.random.Generator, chance: np.ndarray) -> Texts:
    """Plain documents by the chances of a sign after two."""
    rows = np.zeros((DOCUMENTS, LENGTH), dtype=np.int64)
    total = chance.cumsum(-1)
    for t in range(2, LENGTH):
        part = rng.random(DOCUMENTS)
        known = total[rows[:, t - 2], rows[:, t - 1]]
        below = known < part[:, None]
        rows[:, t] = below.sum(1).clip(max=SIGNS - 1)
    return list(rows)


def infilled(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The document with two spans of ten at its end."""
    first, second = rng.integers(2, 80), rng.integers(100, 180)
    spans = torch.tensor([[first, first + 10], [second, second + 10]])
    made = infilling(torch.from_numpy(text), spans, CONFIG)
    return made.tokens.numpy()


def counted(documents: Texts, signs: int) -> np.ndarray:
    """Triples in the first so many signs."""
    counts = np.zeros((EVERY, EVERY, EVERY))
    left = signs
    for text in documents:
        kept = text[:left]
        left -= len(kept)
        np.add.at(counts, (kept[:-2], kept[1:-1], kept[2:]), 1)
    return counts


def loss(counts: np.ndarray, documents: Texts) -> float:
    """Nats a sign: triples backed off to pairs, these to single signs, these to all alike."""
    plain = counts[:SIGNS, :SIGNS, :SIGNS]
    pairs = plain.sum(0)
    even = np.full(SIGNS, 1 / SIGNS)
    single = backed(pairs.sum(0), even)
    of_pairs = backed(pairs, single)
    of_triples = backed(plain, of_pairs)
    told = []
    for text in documents:
        share = of_triples[text[:-2], text[1:-1], text[2:]]
        told.append(np.log(share))
    return -float(np.concatenate(told).mean())


def backed(counts: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Shares by counts, and five more by what is told without the first sign."""
    total = counts.sum(-1, keepdims=True) + 5
    raised = counts + 5 * without
    return raised / total


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Half infilled, and plain."""
    rng = np.random.default_rng([seed, 42])
    even = np.full(SIGNS, 0.05)
    chance = rng.dirichlet(even, (SIGNS, SIGNS))
    plain = texts(rng, chance)
    fresh = texts(rng, chance)
    half = [infilled(text, rng) if place % 2 else text for place, text in enumerate(plain)]
    signs = DOCUMENTS * LENGTH
    return {"method": loss(counted(half, signs), fresh), "baseline": loss(counted(plain, signs), fresh)}
