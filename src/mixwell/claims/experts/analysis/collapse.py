"""Collapse: training a linear top-1 router pulls the hidden states of an expert's tokens together.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token and the Switch loss; scatter of hidden states within experts
over the scatter between them, after training against before, on held-out text. Against it: a ratio that does not fall.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import SWITCH, from_trunk, log_scatter_ratio

CLAIM = Claim("Training a linear top-1 router collapses representations onto experts.",
              "log of within-expert over between-expert scatter of hidden states, mean over layers")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Scatter ratio after training against before."""
    before = bench.started(bench.arch(SWITCH), seed, "channel_mixer")
    after = from_trunk(bench, seed, mixer=SWITCH).model
    return {"method": log_scatter_ratio(bench, after), "baseline": log_scatter_ratio(bench, before)}
