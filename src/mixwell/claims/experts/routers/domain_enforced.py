"""One mixture with an expert for each domain, trained on all domains at once, equals one specialist for each domain.

Paper: Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings.
Tried: retrieval in four domains that share 200 words and sort them into 20 topics differently; an encoder of word
embeddings and one SwiGLU block, trained to rank a document's partner among 20. The mixture (enforced routing, shared
embeddings) reads what the four specialists read together. Mean reciprocal rank against the specialists' less 0.02; one
dense encoder for all domains stands beside. Against it: a rank that is lower by more than 0.02, or not above the dense
encoder's. Encoders start from scratch, where the paper fine-tunes a trained one.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.experts._synthetic import build
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DOMAINS, WORDS, TOPICS, LENGTH, DIM, STEPS = 4, 200, 20, 6, 32, 200
ENFORCED = {"router": {"method": "domain_enforced"}, "balance": {}, "num_experts": DOMAINS, "hidden_dim": 64}
DENSE: dict[str, Any] = {"spec": {"hidden_dim": 64}, "method": "swiglu"}


class Encoder(nn.Module):
    """Mean word embedding, a residual block, length 1."""

    def __init__(self, seed: int, **layer: Any) -> None:
        super().__init__()
        draws = generator(seed, "words")
        self.words = nn.Parameter(torch.randn(WORDS, DIM, generator=draws))
        self.layer = build(seed, layer.pop("spec"), dim=DIM, **layer)

    def forward(self, ids_NL: Tensor, domain: int) -> Tensor:
        """Documents [N, L] -> vectors [N, D]."""
        h = self.words[ids_NL].mean(1)
        labels = torch.full((len(h),), domain)
        context = Context(labels_T=labels)
        mixed = self.layer(h, context)
        residual = h + mixed.y_TD
        return F.normalize(residual, dim=-1)


def pairs(topics_DTW: Tensor, domain: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A document of each topic and its partner, twice [topics, L]."""
    columns = torch.randint(WORDS // TOPICS, (2, TOPICS, LENGTH), generator=draws)
    first, second = (topics_DTW[domain].gather(1, c) for c in columns)
    return first, second


def ranking(encoder: Encoder, documents: tuple[Tensor, Tensor], domain: int) -> Tensor:
    """Scaled cosines of each document to every partner [N, N]."""
    first, second = (encoder(ids, domain) for ids in documents)
    return 20 * first @ second.T


def train(encoder: Encoder, topics: Tensor, domains: tuple[int, ...], draws: torch.Generator, lr: float) -> Encoder:
    """STEPS steps for each domain, in turn."""
    optimizer = torch.optim.Adam(encoder.parameters(), lr=lr)
    for step in range(STEPS * len(domains)):
        domain = domains[step % len(domains)]
        documents = pairs(topics, domain, draws)
        scores = ranking(encoder, documents, domain)
        optimizer.zero_grad()
        F.cross_entropy(scores, torch.arange(TOPICS)).backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def reciprocal_rank(encoder: Encoder, topics: Tensor, domain: int, draws: torch.Generator) -> float:
    """Mean reciprocal rank of the partner over 50 fresh batches."""
    ranks = []
    for _ in range(50):
        documents = pairs(topics, domain, draws)
        scores = ranking(encoder, documents, domain)
        partner = scores.diagonal().unsqueeze(1)
        ranks.append((scores >= partner).sum(1))
    reciprocal = 1 / torch.cat(ranks)
    return float(reciprocal.mean())


def over_domains(encoders: list[Encoder], topics: Tensor, draws: torch.Generator) -> float:
    """The mean reciprocal rank where each domain has an encoder."""
    found = [reciprocal_rank(encoder, topics, domain, draws) for domain, encoder in enumerate(encoders)]
    return statistics.fmean(found)


def drawn(seed: int) -> tuple[Tensor, torch.Generator]:
    """The words of each topic in each domain [DOMAINS, TOPICS, words], and the generator of documents."""
    draws = generator(seed, "domains")
    orders = [torch.randperm(WORDS, generator=draws) for _ in range(DOMAINS)]
    return torch.stack(orders).view(DOMAINS, TOPICS, -1), draws


def together(bench: Bench, seed: int, *, lr: float, **layer: Any) -> float:
    """Mean over domains of the reciprocal rank of one encoder for all."""
    topics, draws = drawn(seed)
    one = train(Encoder(seed, **layer), topics, tuple(range(DOMAINS)), draws, lr)
    return over_domains([one] * DOMAINS, topics, draws)


def apart(bench: Bench, seed: int, *, lr: float) -> float:
    """The same of a dense encoder for each domain."""
    topics, draws = drawn(seed)
    own = [train(Encoder(seed, **DENSE), topics, (d,), draws, lr) for d in range(DOMAINS)]
    return over_domains(own, topics, draws)


GRID = {"lr": RATES}

CLAIM = Claim(
    "One mixture with an expert a domain equals a specialist for each domain.",
    "mean reciprocal rank among 20, mean over domains", lower_is_better=False, at_least=-0.02,
    provided=(Comparison(baseline="dense", lower_is_better=False),),
    sides={"method": Side(together, {"spec": ENFORCED}, GRID), "baseline": Side(apart, {}, GRID),
           "dense": Side(together, DENSE, GRID)})
