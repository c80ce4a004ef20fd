"""Keeping the square root of a sentence's copies teaches more than keeping all, and hardly less than keeping one.

Paper: 360Zhinao Technical Report.
Tried: 3,000 sentences of ten words whose shares fall as 1/i^1.1 over 3,000 words, a twentieth of them repeated up to
256 times; word counts of 4,000 sentences drawn from the copies that stay, smoothed; cross-entropy on 3,000 fresh
sentences. Baseline: all copies. Beside: one of each. Against it: a loss that is no lower than with all, or 0.5 % above
that with one.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.data.sentence_copies import Config, sentence_copies

CLAIM = Claim("The square root of the copies teaches more than all of them.", "nats a word",
              provided=(no_worse("", 0.005, baseline="one"),))
SENTENCES, LENGTH, WORDS, DRAWN = 3000, 10, 3000, 4000


def repeated(rng: np.random.Generator) -> np.ndarray:
    """Ids of all sentences in a corpus, in random order."""
    copies = np.ones(SENTENCES, dtype=np.int64)
    some = rng.random(SENTENCES) < 0.05
    exponent = rng.uniform(0, 8, SENTENCES)
    copies[some] = (2 ** exponent[some]).astype(np.int64)
    ids = np.repeat(np.arange(SENTENCES), copies)
    return rng.permutation(ids)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """With the square root of the copies, all and one."""
    rng = np.random.default_rng([seed, 41])
    place = np.arange(1, WORDS + 1.0)
    share = place**-1.1
    share = share / share.sum()
    words, fresh = rng.choice(WORDS, (2, SENTENCES, LENGTH), p=share)
    ids = repeated(rng)
    found = {}
    for side, power in (("method", 0.5), ("baseline", 1.0), ("one", 0.0)):
        kept = sentence_copies(torch.from_numpy(ids), Config(power=power)).numpy()
        seen = rng.choice(ids[kept], DRAWN)
        counts = np.bincount(words[seen].ravel(), minlength=WORDS) + 0.1
        log_share = np.log(counts / counts.sum())
        found[side] = -float(log_share[fresh].mean())
    return found
