"""Compressed experts: with vectors for three of a token's four experts most of what these gave comes back.

Paper: Efficiently Editing Mixture-of-Experts Models with Compressed Experts.
Tried: the bench's mixture with four of eight experts a token after 200,000 tokens, then 60,000 more; as it is, cut to
one a token, and with one that runs and vectors for the other three. Beside: cut to one whose weight is 1. All train at
the better of the same two rates. Against it: less than 90 % of the bits per byte between one and four recovered; cut
models within 0.5 % of the whole say nothing, which at the first seed one and two of four experts both were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._conversions import TOKENS, bits, made, tuned
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Untestable

CLAIM = Claim("Compressed experts recover nine tenths of what cutting to one expert costs.",
              "share of the bits per byte between one and four experts that is recovered",
              baseline=0.9, lower_is_better=False)
FOUR = {"router": {"method": "top_k", "k": 4}}
RATES = (2e-3, 6e-3)  # of the training that follows
LEAST = 0.005  # share of the whole model's bits per byte that cutting must cost
CUTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vectors": ("compress_experts", {"main": 1}),
    "one": ("fewer_active", {"k": 1, "renormalise": False}),
    "one that counts whole": ("fewer_active", {"k": 1, "renormalise": True})}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares recovered. Raises `Untestable` where cutting costs too little."""
    trained = bench.train(bench.arch(FOUR), seed, tokens=TOKENS)
    whole = trained.model.to_checkpoint()
    best = {"four": best_of(bench, whole, seed)}
    for name, (conversion, options) in CUTS.items():
        cut = made(bench, conversion, whole, seed, options)
        best[name] = best_of(bench, cut, seed)
    lost = best["one"] - best["four"]
    if lost < LEAST * best["four"]:
        raise Untestable(f"one expert a token costs {lost:.4f} bits per byte of {best['four']:.4f}")
    shares = {name: (best["one"] - found) / lost for name, found in best.items()}
    return {"method": shares["vectors"], "one that counts whole": shares["one that counts whole"]}


def best_of(bench: Bench, before: Any, seed: int) -> float:
    """Bits per byte after training on, at the better of the rates."""
    found = [bits(bench, tuned(bench, before, seed, lr=lr)) for lr in RATES]
    return min(found)
