"""Light-PEFT: what masks and gradients say early can go costs less than as much taken at random.

Paper: Light-PEFT: Lightening Parameter-Efficient Fine-Tuning via Early Pruning.
Tried: a decoder trained on three tasks on strings, tuned to a fourth: 40 steps with masks, then a third of heads and
hidden units, half of the adapters and half of their ranks cut, then 60 steps more; against the same with what goes
drawn at random. Cross-entropy of answers in nats. Beside: LoRA uncut. Against it: a loss that is no lower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mixwell.adapters.attached import Attached, attach
from mixwell.adapters.light_peft import Config, Importance, LightPEFT, cut
from mixwell.claims.adapters._losses import nats
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import Rows, base, drawn, fitted
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

FIRST, SECOND = 40, 60
NEW = ("reverse",)


def batches(seed: int, name: str, count: int) -> Iterator[Rows]:
    """Rows of the new task."""
    draws = generator(seed, name)
    for _ in range(count):
        yield drawn(NEW, 32, draws)


def estimated(there: Attached, seed: int, lr: float) -> Importance:
    """The first phase, its second half observed."""
    model: Any = there.model
    fitted(model, batches(seed, "first", FIRST), lr)
    importance = Importance(there)
    for rows in batches(seed, "observed", FIRST // 4):
        read = rows.tokens[:, :-1]
        loss = model.loss(read, rows.targets)
        model.zero_grad()
        loss.nats.backward()
        importance.observe()
    importance.close()
    return importance


@torch.no_grad()
def forget(there: Attached, importance: Importance, draws: torch.Generator) -> None:
    """Put chance in the place of what was learnt of worth."""
    modules, ranks = importance._modules, importance._ranks
    for name, adapter in there.adapters.items():
        rank = adapter.config.rank
        drawn_worth = torch.rand((), generator=draws)
        modules[name] = float(drawn_worth)
        ranks[name] = torch.rand(rank, generator=draws)
        mask = adapter.mask
        if mask is not None:
            numbers = torch.rand(mask.shape, generator=draws)
            mask.copy_(numbers)


def tuned(bench: Bench, seed: int, *, lr: float, how: str) -> float:
    """Loss behind both phases, with what goes told by worth, by chance, or nothing going."""
    network = LanguageModel.from_checkpoint(base(seed))
    config = Config(penalty=1e-3, modules=0.5)
    there = attach(LightPEFT, network, None, config, generator(seed, "adapter"))
    importance = estimated(there, seed, lr)
    if how != "uncut":
        if how == "chance":
            forget(there, importance, generator(seed, "chance"))
        made = cut(there, importance)
        network = LanguageModel.from_checkpoint(made.checkpoint)
        made.attach(network)
    fitted(network, batches(seed, "second", SECOND), lr)
    return nats(network, drawn(NEW, 256, generator(seed, "test")))


RATES = {"lr": (3e-3, 1e-2, 3e-2)}
CLAIM = Claim("What early masks and gradients cut costs less than a cut at random.", "nats a letter",
              sides={"method": Side(tuned, {"how": "worth"}, RATES), "baseline": Side(tuned, {"how": "chance"}, RATES),
                     "uncut": Side(tuned, {"how": "uncut"}, RATES)})
