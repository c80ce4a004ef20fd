"""XFT's merge: an upcycled, tuned mixture becomes one dense block by weights over its experts that are learnt.

**Equation:** W = lam W_s + (1 - lam) sum_{i != s} softmax(alpha)_i W_i for gate, up and down alike, s the always-on
    expert, lam fixed, alpha from 0, one vector a layer; alpha minimises the cross-entropy on text, all else frozen.
    The router goes.
**Shapes:** gate_up_proj [E, 2 F, D] -> [2 F, D]; down_proj [E, D, F] -> [D, F]; alpha [E - 1].
**Reference:** Ding et al. 2024, XFT (2404.15247), section 3.2; released code.
**Differs:** Adam with the rate falling in a line on calibration text; the released rate of 1e-5 leaves alpha even, 0.05
    does not.
**Fails when:** experts have no common start, so that weights between them mean nothing.
**Cost:** one training step's passes for each batch, E times the block's weights in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.convert._distil import descend, next_nats, with_tensors
from mixwell.convert._parts import DOWN, GATE_UP, Rewrite, channel, mixture_layers, sparse_example, to_dense
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the learned merge."""

    shared: int = 0  # s: number of the expert that is always on
    shared_weight: float = 0.75  # lam, 0 to 1
    passes: int = 1  # over the text, 0 or more; 0 leaves the weights even
    lr: float = 0.05  # of alpha, above 0
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all mixtures
    tokens: int = 16384  # of text that alpha is learnt on

    def __post_init__(self) -> None:
        check_not_negative(self, "shared", "shared_weight", "passes")
        check_above(self, lr=0)
        check_least(self, tokens=1)
        if self.shared_weight > 1:
            raise ValueError(f"shared_weight is {self.shared_weight}; expected 0 to 1")


def needs(config: Config) -> Needs:
    """Text, where the weights are learnt."""
    return Needs(tokens=config.tokens if config.passes else 0)


def promises(config: Config) -> dict[str, float]:
    """Nothing: a dense block is no mixture."""
    return {}


def merged(weight_E: Tensor, alpha: Tensor, config: Config) -> Tensor:
    """lam W_s + (1 - lam) sum softmax(alpha)_i W_i, float32."""
    left = 1 - config.shared_weight
    routed = left * alpha.softmax(0)
    own = routed.new_full((1,), config.shared_weight)
    before, after = routed[: config.shared], routed[config.shared :]
    share_E = torch.cat([before, own, after])
    return torch.einsum("eij,e->ij", weight_E.float(), share_E)


def learn(checkpoint: Checkpoint, dense: Checkpoint, alphas: dict[int, Tensor], config: Config,
          calibration: Calibration) -> None:
    """Move alpha of each layer, in place, to where the merged model predicts the text best."""
    def loss(tokens_BS: Tensor) -> Tensor:
        moving = blocks(checkpoint, alphas, config)
        logits_BSV = calibration.logits(dense, tokens_BS, moving)
        return next_nats(logits_BSV, tokens_BS)

    parameters = list(alphas.values())
    descend(parameters, loss, calibration.batches, config.passes, config.lr)


def blocks(checkpoint: Checkpoint, alphas: dict[int, Tensor], config: Config) -> dict[str, Tensor]:
    """The merged matrices of all layers by name."""
    found = {}
    for layer, alpha in alphas.items():
        for name in (GATE_UP, DOWN):
            full = channel(layer, name)
            found[full] = merged(checkpoint.tensors[full], alpha, config)
    return found


@method(
    title="Learned merge of an upcycled mixture",
    paper="XFT: Unlocking the Power of Code Instruction Tuning by Simply Merging Upcycled Mixture-of-Experts",
    year=2024,
)
def learned_merge(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Calibration | None = None) -> Checkpoint:
    """Merge each mixture's experts into one dense block. Draws nothing from `generator`.

    Raises `MixwellError` where there is no expert of the number `shared`, or the mixture has shared experts beside.
    """
    work = Rewrite(checkpoint, "merging experts")
    layers = mixture_layers(work.specs, config.layers, "merging experts")
    for layer in layers:
        _check(work.specs[layer], layer, config)
    alphas = {layer: torch.zeros(work.specs[layer]["num_experts"] - 1, requires_grad=True) for layer in layers}
    even = blocks(checkpoint, alphas, config)
    for layer in layers:
        gate_up, down = work.take_block(layer)
        merged_gate_up = even[channel(layer, GATE_UP)].detach()
        merged_down = even[channel(layer, DOWN)].detach()
        to_dense(work, layer, (merged_gate_up.to(gate_up.dtype), merged_down.to(down.dtype)))
    dense = work.result()
    if not config.passes:
        return dense
    assert calibration is not None
    learn(checkpoint, dense, alphas, config, calibration)
    return with_tensors(dense, blocks(checkpoint, alphas, config))


def _check(spec: dict[str, Any], layer: int, config: Config) -> None:
    experts = spec["num_experts"]
    if config.shared >= experts or experts < 2:
        raise MixwellError(f"layer {layer} has {experts} experts; expected at least 2, and shared below that.")
    if spec.get("shared_experts"):
        raise MixwellError(f"layer {layer} has shared experts beside the routed ones; the merge takes one among them, "
                           "as convert.upcycle with the router shared_first makes it.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of two mixtures of four experts, whose first one is always on."""
    checkpoint = sparse_example(generator)
    config = Config(tokens=48)
    return {"checkpoint": checkpoint, "config": config, "generator": generator}
