"""Fewer channels: subspaces of the keys and values that text makes lose less than those of the weights.

Paper: CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios.
Tried: a small model that looks up values by keys; 400 texts of 32 positions and four questions, each behind a copy of
the text; all but its last position shrunk to a quarter, three eighths or half of the channels. Share of right answers,
mean over these, with subspaces of other texts' keys and values, which are where the paper's training ends, against
those of the weights alone. Beside: those of the weights scaled by inputs, the paper's start. The whole cache answers
nine of ten, else nothing is tried. Against it: no gain.
"""

from __future__ import annotations

from statistics import fmean

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.serve.keeping._recall import model, require_answers, texts
from mixwell.core.rng import generator
from mixwell.serve.keeping.channels import Basis, Config, channels
from mixwell.serve.keeping.shared_context import Config as AskConfig
from mixwell.serve.keeping.shared_context import shared_context

ASKS = AskConfig(mode="requests")
SHARES = (0.25, 0.375, 0.5)
SIDES: dict[str, Basis] = {"method": "text", "baseline": "weights", "scaled weights": "scaled"}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of right answers."""
    draws = generator(seed, "channels")
    seen, _, _ = texts(64, 1, draws)
    asked = texts(400, 4, draws)
    whole = shared_context(model(), *asked, ASKS)
    require_answers(whole)
    shares = {"whole cache": float(whole.mean())}

    def right(config: Config) -> float:
        with channels(model(), seen, config):
            found = shared_context(model(), *asked, ASKS)
        return float(found.mean())

    for name, basis in SIDES.items():
        found = [right(Config(keys=share, values=share, window=1, basis=basis)) for share in SHARES]
        shares[name] = fmean(found)
    return shares


CLAIM = Claim("Subspaces that text makes keep more answers than those of the weights.", "share of right answers",
              lower_is_better=False, at_least=0.0)
