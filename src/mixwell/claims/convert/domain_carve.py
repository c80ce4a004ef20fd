"""Read-ME: with half of its units a model loses less where these are chosen by domain than where they are the same.

Paper: Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design.
Tried: the bench's dense model, width 256, as one expert for each of four domains, half of the units for each token, the
domain guessed from sixteen tokens; bits per byte right after, against carving by importance with its common half kept
and nothing routed, the static mask. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.convert._models import bits, dense_start, made, text
from mixwell.convert._parts import DOWN, GATE_UP, Rewrite, expert_units
from mixwell.convert.domain_carve import Counts
from mixwell.core.checkpoint import Checkpoint

CLAIM = Claim("Half of the units chosen by domain lose less than a static half.", BITS)


def static(bench: Bench, before: Checkpoint) -> Checkpoint:
    """The dense model with the half of its units that is largest over all domains together."""
    work = Rewrite(before, "pruning units")
    layers = list(range(len(work.specs)))
    counts = Counts(before, layers, text(bench, 32768))
    for layer in layers:
        hidden = work.specs[layer]["hidden_dim"]
        order = counts.mean(layer).mean(0).argsort(descending=True, stable=True)
        gate_up, down = work.take(layer, GATE_UP), work.take(layer, DOWN)
        kept = expert_units(gate_up, down, order[: hidden // 2])
        work.put(layer, GATE_UP, kept[0])
        work.put(layer, DOWN, kept[1])
        work.specs[layer] = {**work.specs[layer], "hidden_dim": hidden // 2}
    return work.result()


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte with half of the units by domain and with the same half for all."""
    before = dense_start(bench, seed)
    routed = made(bench, "domain_carve", before, seed, {})
    return {"method": bits(bench, routed), "baseline": bits(bench, static(bench, before))}
