"""Sparse experts: a model in which each token uses a subset of the parameters beats a dense one of equal compute, even
with a routing that is fixed by the token and never learns.

Papers: Hash Layers For Large Sparse Models; A Review of Sparse Expert Models in Deep Learning, whose unifying finding
this is.
Tried: the bench's language model, eight experts of width 64 by a balanced hash of the token, one a token; against a
dense block of width 64, Switch's learnt routing beside. Against it: bits per byte that are no lower after the same
tokens and FLOPs.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import VOCAB_SIZE
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, SWITCH, block, quality

HASH = {"router": {"method": "hash", "vocab_size": VOCAB_SIZE}, "balance": {}}
MIXERS = {"method": HASH, "baseline": block(64), "switch": SWITCH}

CLAIM = Claim("Hash-routed experts beat a dense model of equal compute.", BITS,
              sides={name: Side(quality, {"mixer": mixer}, {"lr": RATES}) for name, mixer in MIXERS.items()})
