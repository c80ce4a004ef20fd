"""LoReFT: a few edited positions learn to name a prompt as well as a LoRA of more than ten times the numbers does.

Paper: ReFT: Representation Finetuning for Language Models.
Tried: a small decoder that knows four domains of two-token rules, which learns for 60 steps to end their windows with
the domain's token: edits of rank 2 at two layers, two positions at each end, against LoRA of rank 4 on all
matrices. Against it: a share of wrong tokens that is larger by more than 0.02.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.adapters._chains import LENGTH, Chain, copied, worldly
from mixwell.claims.adapters._turned import attached
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

DOMAINS, STEPS, ROWS = 4, 60, 32


def windows(chains: list[Chain], rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(windows [B, T], the domain of each [B])."""
    each = rows // DOMAINS
    parts = [chain(each, draws) for chain in chains]
    return torch.cat(parts)[:, :LENGTH], torch.arange(DOMAINS).repeat_interleave(each)


def last_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """[B, V] behind the last token."""
    return model(tokens).logits_BTV[:, -1]


def measure(bench: Bench, seed: int, *, lr: float, method: str, **options: Any) -> dict[str, float]:
    """Share of wrong tokens, and the numbers trained."""
    model = copied(worldly(seed, DOMAINS))
    targets = r"re:layers\.\d+" if method == "loreft" else "all-linear"
    there = attached(model, method, seed, targets, **options)
    chains = [Chain(seed, number) for number in range(DOMAINS)]
    draws = generator(seed, "prompts")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for _ in range(STEPS):
        tokens, labels = windows(chains, ROWS, draws)
        loss = F.cross_entropy(last_logits(model, tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = wrong(model, chains, generator(seed, "held-out prompts"))
    return {"error": error, "numbers": float(there.num_parameters)}


@torch.no_grad()
def wrong(model: LanguageModel, chains: list[Chain], draws: torch.Generator) -> float:
    """Share of 512 windows that end with another domain's token."""
    tokens, labels = windows(chains, 512, draws)
    logits = last_logits(model, tokens)
    found = logits.argmax(-1)
    missed = (found != labels).float()
    return float(missed.mean())


EDITS = {"method": "loreft", "rank": 2, "first": 2, "last": 2, "tied": True}
GRID = {"lr": (1e-3, 3e-3, 1e-2, 3e-2)}
CLAIM = Claim(
    "Edits of hidden states learn as much as a LoRA with more than ten times the numbers.",
    "share of held-out windows under a wrong domain", quantity="error", at_least=-0.02,
    sides={"method": Side(measure, EDITS, GRID),
           "baseline": Side(measure, {"method": "lora", "rank": 4, "alpha": 4.0}, GRID)})
