"""CFSP: budgets by layers and scores by activations stay closer than an even cut by weights and activations.

Paper: CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information.
Tried: the bench's mixture after 150,000 tokens, weighed on 64 held-out windows; half of the experts' hidden units go,
against the same share of both layers by Wanda's score summed over a unit. Beside: the released normaliser, under which
weights cancel, the score with an even budget, and units at random. (Two layers leave the budget little to say.)
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._narrowing import at_random, evenly, looked_at, made, told
from mixwell.claims.precision._weighing import trained
from mixwell.core.checkpoint import Checkpoint
from mixwell.precision.cfsp import activation_norms
from mixwell.precision.cutting import Block, Weights, blocks

CLAIM = Claim("CFSP stays closer than an even cut by Wanda's score.", "mean KL in nats a token", quantity="KL")
SHARE, MULTIPLE = 0.5, 4


def _wanda(bench: Bench, before: Checkpoint) -> Checkpoint:
    """|W_down| times the norm of its inputs, the mean over a unit's column."""
    found = blocks(before, "Wanda")
    norms = activation_norms(before, found, looked_at(bench))

    def score(block: Block, weights: Weights) -> Tensor:
        sizes = weights[1].double().abs()
        return sizes.mean(-2) * norms[block]

    return evenly(bench, before, SHARE, MULTIPLE, score)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all sides."""
    before = trained(bench, seed)
    same = {"share": SHARE, "multiple": MULTIPLE}
    sides = {
        "method": made(bench, before, seed, "cfsp", **same),
        "baseline": _wanda(bench, before),
        "released": made(bench, before, seed, "cfsp", normaliser="released", **same),
        "even": made(bench, before, seed, "cfsp", spread=0.0, **same),
        "random": evenly(bench, before, SHARE, MULTIPLE, at_random(seed)),
    }
    return told(bench, before, sides)
