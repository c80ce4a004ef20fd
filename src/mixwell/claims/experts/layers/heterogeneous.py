"""HMoE: experts of unequal width model language better than equal ones, with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: the bench's language model; top-2 of eight experts of mean width 64, widths 1 to 2.5 in arithmetic steps and the
size penalty, against equal widths with the Switch loss. Against it: bits per byte that are no lower, or no fewer FLOPs
a held-out token (`flops_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.grids import variants
from mixwell.claims.language import BALANCED, RATES, Seen, from_trunk, mean_over, probe

UNEQUAL = {"method": "experts.layers.heterogeneous"}
PENALISED = {"lr": RATES, "balance": variants({}, parameter_penalty=(0.003, 0.01, 0.03))}


def work(seen: Seen) -> float:
    """Forward FLOPs of a channel mixer for a token."""
    mixer = seen.mixer
    if hasattr(mixer, "flops_of"):
        return mixer.flops_of(seen.mixed)
    return mixer.flops_per_token()


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], **options: Any) -> dict[str, float]:
    """Bits per byte, and FLOPs that a channel mixer took for a held-out token, mean over layers."""
    trained = from_trunk(bench, seed, mixer=mixer, **options)
    flops = mean_over(probe(bench, trained.model), work)
    return {"bits": trained.bits_per_byte, "flops": flops}


CLAIM = Claim(
    "Unequal experts beat equal ones with less computation.", BITS, quantity="bits",
    provided=(Comparison(quantity="flops"),),
    sides={"method": Side(measure, {"mixer": UNEQUAL}, PENALISED), "baseline": Side(measure, {"mixer": {}}, BALANCED)})
