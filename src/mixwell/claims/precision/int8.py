"""Eight-bit weights: rounding every large matrix row by row to eight bits leaves a language model's predictions alone.

Paper: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale; here the weights alone are rounded.
Tried: the bench's mixture after 150,000 tokens, weighed before and after on sixteen held-out windows. Against it: a
mean KL of 0.02 nats a token or more, or a loss that is more than 0.5 % higher.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.core.rng import generator
from mixwell.lm.receipt import measure
from mixwell.precision.int8 import Config, int8
from mixwell.run.stages.convert import held_out

CLAIM = Claim("Eight-bit weights leave the predictions alone.", "mean KL in nats a token", quantity="KL", baseline=0.02,
              provided=(no_worse("loss", 0.005),))


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """KL and loss of the rounded model, and the loss before, nats a token."""
    windows = held_out(bench.data, 16, 64)
    arch = bench.arch()
    trained = bench.train(arch, seed, tokens=150_000, swapped="channel_mixer")
    before = trained.model.to_checkpoint()
    draws = generator(seed, "int8")
    after = int8(before, Config(), draws)
    receipt = measure(before, after, windows, "precision.int8")
    rounded = {"KL": receipt.kl_nats, "loss": receipt.loss_after_nats}
    kept = {"loss": receipt.loss_before_nats}
    return {"method": rounded, "baseline": kept}
