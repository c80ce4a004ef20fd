"""Evolved proxies rank mixes of bits that they did not see better than proxies made by hand.

Paper: EMQ: Evolving Training-free Proxies for Automated Mixed Precision Quantization.
Tried: the bench's mixture after 150,000 tokens; 60 mixes of 2, 3 or 4 bits a matrix and expert, weighed by KL on 1024
tokens, half of them to evolve on and half to judge by; against the better of trace and SNIP, linear in the bits as all.
Beside: both of these. Not tried: another network than the one evolved on.
Against it: a rank correlation that is no higher.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._weighing import trained
from mixwell.core.rng import generator
from mixwell.precision.bits import places_of
from mixwell.precision.emq import Config, known, tried
from mixwell.precision.proxies import SNIP, TRACE, Evolution, evolved, scores
from mixwell.run.stages.convert import training_windows

CLAIM = Claim("Evolved proxies rank mixes better than trace and SNIP.", "Spearman's correlation with the quality",
              lower_is_better=False)
CONFIG = Config(bank=60, group_size=32, widths=(2, 3, 4))
PLAN = Evolution(CONFIG.population, CONFIG.children, CONFIG.tournament)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Correlations on the half of the bank that nobody saw."""
    before = trained(bench, seed)
    text = training_windows(bench.data, CONFIG.tokens, 64)
    places = places_of(before, CONFIG)
    draws = generator(seed, "emq")
    about = known(before, places, text, CONFIG, draws)
    bank = tried(before, places, text, CONFIG, draws)
    genes, _ = evolved(about, bank.half(True), PLAN, draws)
    kept = bank.half(False)
    found = {name: kept.agreement(scores(tree, about)) for name, tree in (("trace", TRACE), ("snip", SNIP))}
    best = max(found.values())
    return {"method": kept.agreement(scores(genes, about)), "baseline": best, **found}
