"""SCMoE: contrasting the usual routing with the second expert alone makes a trained mixture reason better, untrained.

Paper: Unchosen Experts Can Contribute Too: Unleashing MoE Models' Power by Self-Contrast.
Tried: a language model of two layers with top-2 of eight experts, trained for 400 steps on sums of two-digit numbers;
sums that come out right by self-contrast (alpha 0.1, beta 0.1, 0.3 or 0.5, weak pass by rank 2) against greedy
decoding. Against it: a share of right sums that is no higher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.claims._methods import build, with_aux
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import RATES, finer
from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

PLUS, EQUALS, VOCAB = 10, 11, 12
PROMPT = 6  # tokens of "ab+cd="


def sums(count: int, draws: torch.Generator) -> Tensor:
    """Rows "ab+cd=uvw" with the sum's digits from the ones up, [count, 9]."""
    a, b = torch.randint(100, (2, count), generator=draws)
    total = a + b
    plus, equals = torch.full_like(a, PLUS), torch.full_like(a, EQUALS)
    prompt = [*two_digits(a), plus, *two_digits(b), equals]
    tens, ones = two_digits(total % 100)
    hundreds = total // 100
    return torch.stack([*prompt, ones, tens, hundreds], 1)


def two_digits(number: Tensor) -> tuple[Tensor, Tensor]:
    """(tens, ones) of numbers below a hundred."""
    return number // 10, number % 10


def trained(bench: Bench, seed: int, lr: float) -> LanguageModel:
    """A model that has seen 400 batches of 128 sums; only the answers count."""
    config = from_dict(ModelConfig, bench.arch(vocab_size=VOCAB))
    model = LanguageModel(config, generator(seed, "model"))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    draws = generator(seed, "sums")
    for _ in range(400):
        rows = sums(128, draws)
        seen = rows[:, :-1]
        targets = rows[:, 1:].clone()
        targets[:, : PROMPT - 1] = -100
        loss = model.loss(seen, targets)
        total = with_aux(loss.nats, loss.aux)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model.eval()


def weakened(model: LanguageModel) -> LanguageModel:
    """A copy that sends every token to its second expert only."""
    weak = copy.deepcopy(model)
    for layer in weak.layers:
        mixer: Any = layer.channel_mixer
        sizes = (mixer.dim, mixer.config.num_experts)
        router = build("experts.routers.rank_k", *sizes, ranks=(2,), renormalise=True)
        router.weight = mixer.router.weight
        mixer.router = router
    return weak


@torch.no_grad()
def right(rows: Tensor, logits: Callable[[Tensor], Tensor]) -> float:
    """Share of rows whose three digits are all decoded right."""
    text = rows[:, :PROMPT]
    for _ in range(3):
        scores = logits(text)
        digit = scores.argmax(-1, keepdim=True)
        text = torch.cat([text, digit], 1)
    whole = (text == rows).all(1)
    return float(whole.float().mean())


def last(model: LanguageModel, text: Tensor) -> Tensor:
    """Logits of the next token [B, V]."""
    return model(text).logits_BTV[:, -1]


def greedy(bench: Bench, seed: int, *, lr: float) -> float:
    """Share right by greedy decoding."""
    model = trained(bench, seed, lr)
    rows = sums(2048, generator(seed, "test"))
    return right(rows, partial(last, model))


def contrasted(bench: Bench, seed: int, *, lr: float, beta: float) -> float:
    """Share right by self-contrast of this strength."""
    module = registry.find("experts.routers.rank_k").module()
    strong = trained(bench, seed, lr)
    weak = weakened(strong)
    rows = sums(2048, generator(seed, "test"))

    def logits(text: Tensor) -> Tensor:
        sure = last(strong, text)
        unsure = last(weak, text)
        return module.contrast(sure, unsure, beta=beta)

    return right(rows, logits)


CONTRAST = {"lr": RATES, "beta": (0.1, 0.3, 0.5)}

CLAIM = Claim(
    "Self-contrast decodes better than greedy decoding, without training.", "share of sums decoded right",
    lower_is_better=False,
    sides={"method": Side(contrasted, {}, CONTRAST), "baseline": Side(greedy, {}, {"lr": finer(RATES, 9)})})
