"""BECoTTA: thin experts beside a block, chosen by a router of the token's own domain.

**Equation:** y = F(x) + sum_k w_k U_k gelu(V_k x + b_k) + c_k, F the frozen block; w from the router of x's domain d;
    synergy loss = -sum_{d,e} P(d, e) log(P(d, e) / (P(d) P(e))), P(d, e) the mean over tokens of [d(x) = d] p_e(x).
**Shapes:** x [T, D]; V [E, R, D], U [E, D, R]; biases [E, R] and [E, D].
**Reference:** Lee et al. 2024, BECoTTA (2402.08712).
**Differs:** the domain is given as the tokens' label; there, a discriminator of images says it. Experts are chosen
    token by token, there image by image, and noise is drawn in training alone. The gradient reaches the routers
    through weights and loss, which it does not in the released code. Its filtered pseudo-labels and restored entries
    belong to the loop that adapts, and are not here. The start is not the base: U and V start normal with std 0.02.
**Fails when:** a batch holds one domain only: the synergy is then 0, and so is its gradient.
**Cost:** 4 D R a slot, and the routing of each domain's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters._parts import LayerAdapter, product
from mixwell.adapters._routed import check_width, own_router, report_losses, through, width_of
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers.swiglu import Config as Block
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.kernels.norm import wide_dtype
from mixwell.mixing import Mixed, check_least, check_not_negative, normal_parameter, normalised


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BECoTTA."""

    num_domains: int = 4  # routers; labels are 0 to num_domains - 1
    num_experts: int = 4  # E
    rank: int = 4  # R, hidden width of an expert
    synergy: float = 5e-4  # coefficient of the loss that ties domains to experts
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "noisy_top_k", "k": 3, "load": 0.0})

    def __post_init__(self) -> None:
        check_least(self, num_domains=1, num_experts=1, rank=1)
        check_not_negative(self, "synergy")


def synergy(scores_TE: Tensor, labels_T: Tensor, num_domains: int) -> Tensor:
    """Minus the mutual information (nats) of domain and expert, from scores that sum to 1."""
    of_domain = F.one_hot(labels_T, num_domains).to(scores_TE.dtype)
    joint = of_domain.T @ scores_TE / len(labels_T)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    tiny = torch.finfo(joint.dtype).tiny
    ratio = joint.clamp_min(tiny) / apart.clamp_min(tiny)
    return -(joint * ratio.log()).sum()


@method(
    title="BECoTTA, experts chosen by a router for each domain",
    paper="BECoTTA: Input-dependent Online Blending of Experts for Continual Test-time Adaptation",
    year=2024,
    tags={"inexact-start"},
)
class BECoTTA(LayerAdapter):
    """Thin experts with a router for each domain; see the module's card."""

    targets = ("channel_mixer",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        width = width_of(target)
        check_width(config.rank, width, target)
        experts, rank = config.num_experts, config.rank
        domains = range(config.num_domains)
        routers = [own_router(config.router, width, experts, generator) for _ in domains]
        self.routers = nn.ModuleList(routers)
        self.down = normal_parameter((experts, rank, width), generator)
        self.up = normal_parameter((experts, width, rank), generator)
        self.down_bias = nn.Parameter(self.down.new_zeros(experts, rank))
        self.up_bias = nn.Parameter(self.down.new_zeros(experts, width))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; `context.labels_T` are the domains, which one domain alone does not need."""
        mixed: Mixed = self.base(x_TD, context)
        labels = self.labels(x_TD, context)
        more = torch.zeros_like(mixed.y_TD)
        scores = scores_like(x_TD, self.config.num_experts)
        for domain, router in enumerate(self.routers):
            own = labels == domain
            rows = x_TD[own]
            known = _of(context, own)
            routing: Routing = router(rows, known)
            change = through((rows,), routing, self.adapted)
            there = own[:, None]
            more = more.masked_scatter(there, change)
            shares = normalised(routing.scores_TE)
            scores = scores.masked_scatter(there, shares)
            report_losses(self, routing, context)
        if context.losses:
            self._report(scores, labels, context.mask_T)
        return mixed._replace(y_TD=mixed.y_TD + more)

    def labels(self, x_TD: Tensor, context: Context) -> Tensor:
        """The domain of each token [T]; `MixwellError` where it is not known."""
        domains = self.config.num_domains
        given = context.labels_T
        if domains == 1:
            return torch.zeros(len(x_TD), dtype=torch.long, device=x_TD.device)
        if given is None:
            raise MixwellError(f"BECoTTA has routers for {domains} domains and got no labels; give labels_B, or set "
                               "num_domains: 1.")
        if not len(given):
            return given
        low, high = int(given.min()), int(given.max())
        if low < 0 or high >= domains:
            raise MixwellError(f"BECoTTA knows the domains 0 to {domains - 1} and got {low} to {high}; set "
                               "num_domains.")
        return given

    def _report(self, scores_TE: Tensor, labels: Tensor, mask_T: Tensor | None) -> None:
        """Hand the synergy loss of the tokens that are no padding on."""
        if mask_T is not None:
            scores_TE, labels = scores_TE[mask_T], labels[mask_T]
        if not len(labels):
            return
        loss = synergy(scores_TE, labels, self.config.num_domains)
        self.report({"adapter_synergy": loss}, self.config.synergy * loss)

    def adapted(self, x_ND: Tensor, expert: int) -> Tensor:
        """One expert on its rows [N, D]."""
        into = product(x_ND, self.down[expert])
        hidden = F.gelu(into + self.down_bias[expert].to(into.dtype))
        out = product(hidden, self.up[expert])
        return out + self.up_bias[expert].to(out.dtype)


def scores_like(x_TD: Tensor, num_experts: int) -> Tensor:
    """Room for the scores of tokens [T, E], in the type that routers score in."""
    dtype = wide_dtype(x_TD.dtype)
    return torch.zeros(len(x_TD), num_experts, dtype=dtype, device=x_TD.device)


def _of(context: Context, own: Tensor) -> Context:
    """What is known of some tokens, as a router may read it."""
    mask = None if context.mask_T is None else context.mask_T[own]
    ids = None if context.token_ids_T is None else context.token_ids_T[own]
    found = Context(token_ids_T=ids, mask_T=mask, generator=context.generator)
    return dataclasses.replace(found, layer=context.layer, num_layers=context.num_layers, step=context.step)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One domain, three experts of rank two at a block of width six."""
    owner = SwiGLU(6, Block(hidden_dim=5), generator)
    config = Config(num_domains=1, num_experts=3, rank=2, router={"method": "top_k", "k": 2})
    return {"target": Target("channel_mixer", owner), "config": config}
