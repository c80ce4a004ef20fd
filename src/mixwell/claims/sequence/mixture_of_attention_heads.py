"""Mixture of attention heads: heads chosen for each token beat fixed heads at equal computation.

Paper: Mixture of Attention Heads: Selecting Attention Heads Per Token.
Tried: the bench's language model on 150,000 tokens with dense blocks of width 128; five of 16 query heads of width 16
over one shared key, against attention with four heads of width 16, which takes slightly more multiply-adds. Against
it: bits per byte that are no lower, or more FLOPs a token.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits, dense, models
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000
MIXTURE = {"method": "sequence.mixture_of_attention_heads", "num_experts": 16, "num_heads": 5, "head_dim": 16}


def flops(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """Forward FLOPs a token, from each seed."""
    return [model.flops_per_token(64) for model in models(bench, arch, TOKENS)]


def claim(bench: Bench) -> Evidence:
    """Bits per byte of chosen heads against fixed ones."""
    plain = dense(bench, 128)
    chosen = plain | {"sequence_mixer": MIXTURE}
    method, baseline = bits(bench, chosen, TOKENS), bits(bench, plain, TOKENS)
    evidence = weigh("Chosen heads beat fixed heads of equal computation.", BITS, method, baseline)
    ours, theirs = flops(bench, chosen), flops(bench, plain)
    return provided(evidence, ours[0] <= theirs[0], "It takes more FLOPs.", method_flops=ours, baseline_flops=theirs)
