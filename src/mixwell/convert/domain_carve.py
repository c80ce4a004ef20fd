"""Read-ME: an expert for each domain, of the units that matter there, and one router before the network.

**Equation:** score_d(i) = mean |h_i| over the tokens of domain d;  M_d = the s F units of largest score_d;
    R = intersection of all M_d;  y = R(x) + E_c(x), E_d = the block cut to M_d - R, c the domain guessed from the last
    tokens by the votes log P(token | domain), the same in every layer. No weights but 1.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 n, D], shared_gate_up_proj [2 |R|, D], n + |R| = s F; votes_VE [V, E].
**Reference:** Cai et al. 2024, Read-ME (2410.19123), sections 3.1-3.2; released code.
**Differs:** the router is a table counted from the text (`experts.routers.token_votes`), not a trained transformer.
    Where all M_d are alike, each expert keeps the last of the common units as its own. Expert-aware batching and
    caching belong to serving. Nothing is trained.
**Fails when:** the domains use the same units: the experts then are one pruned block.
**Cost:** one pass over the text; each token visits s F units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.convert._parts import (
    GATE_UP,
    SPARSE,
    Rewrite,
    activations,
    channel,
    dense_example,
    dense_layers,
    expert_units,
    stacked,
)
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of carving by domain."""

    share: float = 0.5  # s: of the hidden units that a token visits, above 0 and below 1
    reach: int = 16  # tokens whose votes choose the expert, at least 1
    decay: float = 0.9  # what a token's vote counts for the next one, above 0, up to 1
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense
    tokens: int = 32768  # of text looked at, of all domains alike

    def __post_init__(self) -> None:
        check_above(self, share=0, decay=0)
        check_least(self, reach=1, tokens=1)
        if self.share >= 1 or self.decay > 1:
            raise ValueError(f"share is {self.share} and decay {self.decay}; expected a share below 1, a decay up to 1")


def needs(config: Config) -> Needs:
    """Text of several domains."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: half of the block is gone for each token."""
    return {}


class Masks(NamedTuple):
    """The units of a layer that all domains need, and those of each domain beside."""

    common: Tensor
    own: list[Tensor]


def masks(score_EF: Tensor, size: int) -> Masks:
    """Of each domain the `size` units of largest score: what they have in common, and the rest of each."""
    order_EF = score_EF.argsort(dim=1, descending=True, stable=True)
    nothing = torch.zeros_like(score_EF, dtype=torch.bool)
    wanted_EF = nothing.scatter(1, order_EF[:, :size], True)
    alike = wanted_EF.all(0).nonzero().flatten()
    common = alike[: size - 1]
    wanted_EF[:, common] = False
    own = [row.nonzero().flatten() for row in wanted_EF]
    return Masks(common, own)


class Counts:
    """What is added up over the text: mean |h| by layer and domain, and tokens by domain."""

    def __init__(self, checkpoint: Checkpoint, layers: list[int], calibration: Calibration) -> None:
        domains = calibration.num_domains
        vocab = int(checkpoint.arch["vocab_size"])
        self.score: dict[int, Tensor] = {}
        self.tokens_VE = torch.zeros(vocab, domains, dtype=torch.float64)
        for seen in calibration.seen(checkpoint):
            labels_T = seen[0].labels_T
            one = torch.ones(len(labels_T), dtype=torch.float64)
            self.tokens_VE.index_put_((seen[0].ids_T, labels_T), one, accumulate=True)
            for layer in layers:
                h_TF = activations(seen[layer].x_TD, checkpoint.tensors[channel(layer, GATE_UP)])
                size_TF = h_TF.abs().double()
                start = size_TF.new_zeros(domains, size_TF.shape[1])
                so_far = self.score.get(layer, start)
                self.score[layer] = so_far.index_add(0, labels_T, size_TF)

    def mean(self, layer: int) -> Tensor:
        """Mean |h| of each unit in each domain [E, F]."""
        tokens_E = self.tokens_VE.sum(0).clamp_min(1)
        return self.score[layer] / tokens_E.unsqueeze(1)

    def votes(self) -> Tensor:
        """log P(token | domain), each token counted once more, less its mean over domains; float32 [V, E]."""
        counted = self.tokens_VE + 1
        logs = counted.log() - counted.sum(0).log()
        return (logs - logs.mean(1, keepdim=True)).float()


@method(
    title="Experts by domain behind one router",
    paper="Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design",
    year=2024,
)
def domain_carve(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                 calibration: Calibration) -> Checkpoint:
    """Turn dense layers into one expert a domain of the text. Draws nothing from `generator`.

    Raises `MixwellError` where the text has one domain only.
    """
    if calibration.num_domains < 2:
        raise MixwellError("the text has one domain; expected at least two (data.domains of a recipe), each of which "
                           "gets an expert.")
    work = Rewrite(checkpoint, "carving by domain")
    layers = dense_layers(work.specs, config.layers, "carving by domain")
    counts = Counts(checkpoint, layers, calibration)
    votes_VE = counts.votes()
    for layer in layers:
        hidden = work.specs[layer]["hidden_dim"]
        size = max(1, round(config.share * hidden))
        _carve_layer(work, layer, masks(counts.mean(layer), size), config)
        work.put(layer, "router.votes_VE", votes_VE)
    return work.result()


def _carve_layer(work: Rewrite, layer: int, found: Masks, config: Config) -> None:
    """Put the domains' units in place of the block."""
    gate_up, down = work.take_block(layer)
    experts = [expert_units(gate_up, down, units) for units in found.own]
    work.put_block(layer, stacked(experts))
    vocab = int(work.source.arch["vocab_size"])
    router = {"method": "token_votes", "vocab_size": vocab, "reach": config.reach, "decay": config.decay}
    size = len(found.own[0])
    spec = {"method": SPARSE, "num_experts": len(experts), "hidden_dim": size, "router": router}
    common = len(found.common)
    if common:
        shared = expert_units(gate_up, down, found.common)
        work.put_shared(layer, shared)
        spec |= {"shared_experts": 1, "shared_hidden_dim": common}
    work.specs[layer] = spec


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, width six, hidden width eight."""
    checkpoint = dense_example(generator)
    return {"checkpoint": checkpoint, "config": Config(tokens=48), "generator": generator}
