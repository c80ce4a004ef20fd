"""Compressed experts as a layer: from the start on, vectors of experts that do not run are better than nothing.

Paper: Efficiently Editing Mixture-of-Experts Models with Compressed Experts.
Tried: the bench's language model; two of eight experts a token of which one runs and one speaks through vectors,
against one of eight, which takes within 3 % of the FLOPs. The paper puts vectors into a trained model, which
convert.compress_experts is tried on. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, quality

GRID = {"lr": RATES}
RAW = {"method": "top_k", "k": 2, "renormalise": False}
ONE = {"method": "top_k", "k": 1}
CLAIM = Claim(
    "One expert with another's vectors beats one expert alone.", BITS,
    sides={"method": Side(quality, {"mixer": {"method": "experts.layers.compressed_experts", "router": RAW}}, GRID),
           "baseline": Side(quality, {"mixer": {"router": ONE}}, GRID)})
