"""Collapse: training a linear top-1 router pulls the hidden states of an expert's tokens together.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token and the Switch loss; scatter of hidden states within experts
over the scatter between them, after training against before, on held-out text. Against it: a ratio that does not fall.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, log_scatter_ratio, models
from mixwell.core.config import from_dict
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel


def untrained(arch: dict[str, Any], seed: int) -> LanguageModel:
    """The model before its first step."""
    return LanguageModel(from_dict(ModelConfig, arch), generator(seed, "model"))


def claim(bench: Bench) -> Evidence:
    """Scatter ratio after training against before."""
    arch = bench.arch(SWITCH)
    before = [log_scatter_ratio(bench, untrained(arch, seed)) for seed in bench.seeds]
    after = [log_scatter_ratio(bench, model) for model in models(bench, arch)]
    return weigh("Training a linear top-1 router collapses representations onto experts.",
                 "log of within-expert over between-expert scatter of hidden states, mean over layers", after, before,
                 note="The ratio rises: an untrained router splits the embeddings by chance into clusters that "
                      "training then widens. Whether it falls later is not seen on 300,000 tokens.")
