"""Eight-bit weights: rounding every large matrix row by row to eight bits leaves a language model's predictions alone.

Paper: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale; here the weights alone are rounded.
Tried: the bench's mixture after 150,000 tokens, weighed before and after on sixteen held-out windows. Against it: a
mean KL of 0.02 nats a token or more, or a loss that is more than 0.5 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import no_worse, provided
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.lm.receipt import measure
from mixwell.precision.int8 import Config, int8
from mixwell.run.stages.convert import held_out

LIMIT_NATS = 0.02


def claim(bench: Bench) -> Evidence:
    """Mean KL of the rounded model against the limit."""
    windows = held_out(bench.data, 16, 64)

    def change(seed: int) -> tuple[float, float, float]:
        """(KL, loss after, loss before), nats a token."""
        trained = bench.train(bench.arch(), seed, tokens=150_000)
        before = trained.model.to_checkpoint()
        after = int8(before, Config(), generator(seed, "int8"))
        receipt = measure(before, after, windows, "precision.int8")
        return receipt.kl_nats, receipt.loss_after_nats, receipt.loss_before_nats

    kl, after_nats, before_nats = series(bench, change)
    as_good = no_worse(after_nats, before_nats, 0.005)
    evidence = weigh("Eight-bit weights leave the predictions alone.",
                     f"mean KL in nats a token; baseline is the limit {LIMIT_NATS}", kl, [LIMIT_NATS] * len(kl))
    return provided(evidence, as_good, "The loss is more than 0.5 % higher.", loss_after_nats=after_nats,
                    loss_before_nats=before_nats)
