"""Patch-level and sample-level routing of two-layer experts, the mixtures of two learning theories.

**Equation:** patch: expert s takes the l patches of a row with the largest <w_s, x_j>: J_s;  G_js = softmax over J_s,
        or 1 where the router was trained apart;  y_j = sum_{s : j in J_s} (G_js / l) A_s relu(W_s x_j).
    sample: h_s = sum_j <w_s, x_j>;  the row goes to s = argmax_s (h_s + r_s), r_s uniform noise of training;
        y_j = softmax(h)_s A_s sigma(W_s x_j).
    The papers' classifiers are f = <v, sum_j y_j>, v fixed. sigma(z) = relu(z), or z^3.
**Shapes:** x [B * S, D], a row's S patches one after another; router w [E, D]; up_proj W [E, F, D];
    down_proj A [E, D, F].
**Reference:** patch: Chowdhery et al. 2023, pMoE (2306.04073), eq. 1-2, and the authors' code; sample: Chen et al.
    2022 (2208.02813), section 2.
**Differs:** outputs per patch instead of their sum, so that the layer stands where others stand; A is learnt, where
    both papers fix it. The router's own loss for training it apart is `separation_loss`. Sample-level routing, and what
    the authors' code of patch-level routing leaves open, from memory of the papers. Experts start normal with std 0.02.
**Fails when:** patch: a row's label hangs on more than l patches of a kind; or it is used in a language model, whose
    later tokens it sees. sample: one expert wins before the router has found the clusters; the noise is against that.
**Cost:** patch: 4 E l D F FLOPs a row; sample: 4 S D F; and 2 S D E for the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ChannelMixer, Gate, routed_mlp
from mixwell.mixing import Mixed, apply_balance, build_balance, check_least, empty, normal_parameter, to_slots

ACTIVATIONS = {"relu": torch.relu, "cubic": lambda z: z * z * z}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of patch-level and sample-level routing."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    routing: Literal["patch", "sample"] = "patch"  # experts take patches, or a row goes to one expert
    patches: int = 1  # patch: l, patches that an expert takes of a row
    activation: Literal["relu", "cubic"] = "relu"  # sigma
    router_training: Literal["joint", "separate"] = "joint"  # patch: separate keeps the gradient from the router
    noise: float = 0.0  # sample: upper bound of the noise on h in training, 0 or more (the paper: 1)
    router_std: float = 0.02  # deviation of the router's first values, 0 or more; the papers start it near 0
    balance: Mapping[str, Any] = field(default_factory=dict)  # rule -> coefficient

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, patches=1, noise=0, router_std=0)
        by_patch = self.routing == "patch"
        if by_patch and self.noise:
            raise ValueError(f"noise is {self.noise}; it belongs to routing: sample")
        plain = self.patches == 1 and self.router_training == "joint"
        if not by_patch and not plain:
            raise ValueError("patches and router_training belong to routing: patch")


def patch_routing(logits_BSE: Tensor, mask_BS: Tensor, patches: int, gated: bool) -> Routing:
    """Each expert takes its `patches` best real patches of each row; weights G / l."""
    real = mask_BS.unsqueeze(-1)
    lowest = torch.finfo(logits_BSE.dtype).min
    logits = logits_BSE.masked_fill(~real, lowest)
    count = min(patches, logits.shape[1])
    best, at = logits.topk(count, dim=1)
    shares = best.softmax(1) if gated else torch.ones_like(best)
    nothing = torch.zeros_like(logits)
    gates = nothing.scatter(1, at, shares)
    taken = nothing.bool().scatter(1, at, True)
    chosen = taken & real
    weights = gates / patches
    indices, weights = to_slots(chosen.flatten(0, 1), weights.flatten(0, 1))
    return Routing(indices, weights, gates.flatten(0, 1), logits_BSE.flatten(0, 1))


def sample_routing(logits_BSE: Tensor, mask_BS: Tensor, noise_BE: Tensor | None) -> Routing:
    """Every real patch of a row goes to the row's expert, with the row's softmax score as weight."""
    h_BE = (logits_BSE * mask_BS.unsqueeze(-1)).sum(1)
    scores = h_BE.softmax(-1)
    noisy = h_BE if noise_BE is None else h_BE + noise_BE
    choice = noisy.argmax(-1, keepdim=True)
    weights = scores.gather(-1, choice).expand(mask_BS.shape)
    indices, weights = empty(choice.expand(mask_BS.shape), weights, ~mask_BS)
    to_all = logits_BSE.shape
    of_patches = scores.unsqueeze(1).expand(to_all)
    logits = h_BE.unsqueeze(1).expand(to_all)
    return Routing(indices.reshape(-1, 1), weights.reshape(-1, 1), of_patches.flatten(0, 1), logits.flatten(0, 1))


def separation_loss(weight_ED: Tensor, x_BSD: Tensor, labels_B: Tensor) -> Tensor:
    """- mean_b y_b <mean of the first half of w minus the second, sum_j x_bj>, y = 1 or -1: what a router that is
    trained apart minimises, each half of the experts standing for a class. Unbounded below: take few steps."""
    first, second = weight_ED.chunk(2)
    direction = first.mean(0) - second.mean(0)
    along_B = x_BSD.sum(1) @ direction
    return -(labels_B.to(along_B.dtype) * along_B).mean()


@method(
    title="Patch-level and sample-level routing",
    paper=(
        "Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for Convolutional Neural Networks",
        "Towards Understanding Mixture of Experts in Deep Learning",
    ),
    year=2022,
    tags={"non-causal"},
)
class PatchMoE(ChannelMixer):
    """Two-layer experts on routed patches; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.gate = Gate(dim, experts, generator, std=config.router_std)
        self.balance = build_balance(config.balance)
        self.up_proj = normal_parameter((experts, hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[B * S, D] -> [B * S, D]; rows are `context.batch_shape`, one row where it is not given."""
        routing = self.route(x_TD, context)
        activation = ACTIVATIONS[self.config.activation]
        y = routed_mlp(x_TD, routing, self.up_proj, self.down_proj, activation)
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def route(self, x_TD: Tensor, context: Context) -> Routing:
        """Which experts work on each patch; raises `MixwellError` where noise cannot be drawn."""
        shape = context.batch_shape or (1, len(x_TD))
        mask = context.mask_T
        if mask is None:
            mask = x_TD.new_ones(len(x_TD), dtype=torch.bool)
        mask = mask.view(shape)
        logits = self.gate(x_TD).unflatten(0, shape)
        if self.config.routing == "sample":
            noise = self._noise(logits, context)
            return sample_routing(logits, mask, noise)
        joint = self.config.router_training == "joint"
        if not joint:
            logits = logits.detach()
        return patch_routing(logits, mask, self.config.patches, joint)

    def _noise(self, logits_BSE: Tensor, context: Context) -> Tensor | None:
        noise = self.config.noise
        draws = context.generator
        if not self.training or not noise:
            return None
        if draws is None:
            raise MixwellError("PatchMoE draws while training; give Context(generator=...), set noise: 0, or call "
                               "eval().")
        rows, _, experts = logits_BSE.shape
        draw = torch.rand((rows, experts), generator=draws, device=draws.device)
        return noise * draw.to(logits_BSE)

    def flops_per_token(self) -> float:
        """2 D E for the router and 4 D F for each expert that works on a patch: one with routing sample; with routing
        patch all E, the most that can; for one batch see `flops_of`."""
        experts = self.config.num_experts if self.config.routing == "patch" else 1
        return self._flops(experts)

    def flops_of(self, mixed: Mixed) -> float:
        """Forward FLOPs per token that this output took: 4 D F for each filled slot, 2 D E for the router.

        Raises `ValueError` for an output without tokens.
        """
        if mixed.routing is None or not len(mixed.routing.indices_TK):
            raise ValueError("flops_of counts the slots of an output with tokens; got none")
        filled = mixed.routing.indices_TK >= 0
        return self._flops(float(filled.sum()) / len(filled))

    def _flops(self, experts: float) -> float:
        c = self.config
        blocks = 4.0 * self.dim * c.hidden_dim * experts
        return blocks + 2.0 * self.dim * c.num_experts


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five patches of width six, two of them for each of three experts."""
    config = Config(num_experts=3, hidden_dim=4, patches=2)
    x_TD = torch.randn(10, 6, generator=generator)
    context = Context(batch_shape=(2, 5))
    return {"dim": 6, "config": config, "x_TD": x_TD, "context": context}
