"""Votes of the last tokens: the domain that a text comes from is guessed from them far better than by chance.

Paper: Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design.
Tried: the votes that `convert.domain_carve` counts from 32,768 training tokens of four domains, on held-out text: share
of the tokens sent to their own domain's expert, against the most frequent domain's share of a quarter and 0.3 more.
Against it: a share that is no higher.
"""

from __future__ import annotations

import torch

from mixwell.claims._conversions import made, text
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import dense, held_out
from mixwell.core.routing import Context
from mixwell.lm.model import LanguageModel

CLAIM = Claim("The last tokens tell their domain.", "share of held-out tokens sent to their domain's expert",
              baseline=0.55, lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Share of the tokens whose expert is that of their domain."""
    before = bench.started(dense(bench, 64), seed).to_checkpoint()
    carved = made(bench, "domain_carve", before, seed, {}, looked_at=text(bench, 32768))
    router = LanguageModel.from_checkpoint(carved).routers()[0]
    windows, labels = held_out(bench, 32, 64)
    shape = (windows.shape[0], windows.shape[1])
    context = Context(token_ids_T=windows.flatten(), batch_shape=shape)
    nothing = torch.zeros(windows.numel(), 64)
    chosen = router(nothing, context).indices_TK.view(shape)
    right = chosen == labels.unsqueeze(1)
    return {"method": float(right.double().mean())}
