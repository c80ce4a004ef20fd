"""MoSA: an adapter trained a module at a time and merged answers new strings better than one trained whole.

Paper: Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training.
Tried: a decoder that knows three tasks on strings, frozen, and adapted to moving letters on by four distances, each
named by a word, from 400 examples: an adapter of rank 8 in four modules, of which each step trains one, against the
same adapter trained whole, at rates of their own. The paper's second pass and the divergence between the two are left
out on both sides. Cross-entropy of answers to new strings. Against it: one that is no lower.
"""

from __future__ import annotations

import torch

from mixwell.adapters import mosa
from mixwell.adapters.attached import attach
from mixwell.claims.adapters._losses import nats
from mixwell.claims.adapters._tasks import NATS, gone_on
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.strings import Rows, base
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

FEW, STEPS, BATCH, RANK = 400, 300, 16, 8


def sparsely(network: LanguageModel, few: Rows, lr: float, seed: int) -> LanguageModel:
    """Train on the few examples; each pass draws the modules of its blocks."""
    moving = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=lr, fused=True)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    draws = generator(seed, "batches")
    network.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(few.tasks), (BATCH,), generator=draws)
        batch = few.of(chosen)
        loss = network.loss(batch.tokens[:, :-1], batch.targets, generator=draws)
        optimizer.zero_grad()
        loss.nats.backward()
        optimizer.step()
        falling.step()
    return network.eval()


def measure(bench: Bench, seed: int, *, lr: float, modules: int) -> float:
    """Nats a letter of new answers."""
    network = LanguageModel.from_checkpoint(base(seed))
    config = mosa.Config(modules=modules, rank=RANK, scale=1.0)
    attach(mosa.MoSA, network, None, config, generator(seed, "adapter"))
    few = gone_on(FEW, generator(seed, "few"))
    sparsely(network, few, lr, seed)
    test = gone_on(512, generator(seed, "test"))
    return nats(network, test)


GRID = {"lr": (1e-3, 3e-3, 1e-2, 3e-2)}
CLAIM = Claim("An adapter trained a module at a time beats one trained whole.", NATS,
              sides={"method": Side(measure, {"modules": 4}, GRID), "baseline": Side(measure, {"modules": 1}, GRID)})
