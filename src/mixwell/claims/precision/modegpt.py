"""MoDeGPT: decompositions by what text makes of a block stay closer than the same widths by weights alone.

Paper: MoDeGPT: Modular Decomposition for Large Language Model Compression.
Tried: the bench's mixture after 150,000 tokens, weighed on 64 held-out windows; 30 % of the width of experts and heads
goes, against units of least weight and the decompositions of heads without text. Beside: the same share of both layers,
and experts alone, with the closed form and with the same units without it.
Against it: a mean KL that is no lower.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._narrowing import evenly, looked_at, loudness, made, told
from mixwell.claims.precision._weighing import trained
from mixwell.core.checkpoint import Checkpoint
from mixwell.precision.cutting import Block, Weights, each_matrix
from mixwell.precision.modegpt import Heads, attentions, cut_heads, leverage, second_moments

CLAIM = Claim("MoDeGPT stays closer than a cut by weights alone.", "mean KL in nats a token", quantity="KL")
SHARE, MULTIPLE = 0.3, 4
RIDGE = 1e-2


def _of_weights(before: Checkpoint, heads: Heads) -> Tensor:
    """Second moments of q, k and v over inputs that are white."""
    rows = before.tensors[f"{heads.start}qkv.weight"].double()
    by_head = rows.unflatten(0, (-1, heads.width))
    return by_head @ by_head.mT


def _by_weights(bench: Bench, before: Checkpoint) -> Checkpoint:
    narrow = evenly(bench, before, SHARE, MULTIPLE, loudness)
    heads = attentions(narrow)
    moments = {f"{one.start}qkv.weight": _of_weights(narrow, one) for one in heads}
    shares = [1 - SHARE] * len(heads)
    others, specs = cut_heads(narrow, heads, moments, shares)
    tensors = {**narrow.tensors, **others}
    arch = {**narrow.arch, "sequence_mixer": specs}
    return narrow.derive(arch=arch, tensors=tensors)


def _same_units(bench: Bench, before: Checkpoint) -> Checkpoint:
    """The units that MoDeGPT keeps, their down map as it was."""

    def score(block: Block, weights: Weights) -> Tensor:
        text = looked_at(bench)
        found = second_moments(before, [block], [], text)
        scored = partial(leverage, ridge=RIDGE)
        return each_matrix(scored, found[block.down])

    return evenly(bench, before, SHARE, MULTIPLE, score)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of all sides."""
    before = trained(bench, seed)
    same = {"share": SHARE, "multiple": MULTIPLE, "ridge": RIDGE}
    sides = {
        "method": made(bench, before, seed, "modegpt", **same),
        "baseline": _by_weights(bench, before),
        "even": made(bench, before, seed, "modegpt", temperature=None, **same),
        "experts alone": made(bench, before, seed, "modegpt", attention=False, temperature=None, **same),
        "experts without the closed form": _same_units(bench, before),
    }
    return told(bench, before, sides)
