"""KIND: a matrix as rank-one components, some for every domain, some for the tokens of one domain alone.

**Equation:** y = U diag(g(d) * s) V^T x in the place of W x; g(d) is 1 on the G common components (learngenes) and on
    the N of domain d (tailors), 0 on those of other domains.
**Shapes:** W [O, I]; common U [O, G], s [G], V^T [G, I]; tailors [O, C N], [C N], [C N, I]; of a stack with E in front.
**Reference:** Xie et al. 2024, KIND (2408.07337), in diffusion models, with classes for domains; the rule as the same
    authors' DivControl restates it.
**Differs:** the gate is the domain of each token of a language model, its label. The components of a trained model
    start from its own decomposition (`svd`): the largest are common, and every domain's tailors start as the next ones,
    so with G + N = min(O, I) the start is the base for every domain; the paper trains from scratch (`random`).
    Tailors for a new domain (`fresh`) start random, as long as the components that they stand for.
**Fails when:** tailors are many: each domain then keeps to its own, and little that is common is gathered.
**Cost:** 2 (G + C N) (I + O) a token, beside the product with W, whose result is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, product
from mixwell.adapters.attached import Attached
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.mixing import check_least

COMMON = "U", "s", "Vh"
OWN = "tailor_U", "tailor_s", "tailor_Vh"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of KIND."""

    common: int = 24  # G, components of every domain
    tailors: int = 8  # N, components of each domain
    domains: int = 1  # C; labels are 0 to C - 1, and one domain needs none
    start: Literal["svd", "fresh", "random"] = "svd"  # fresh: tailors alone are random; random: all components
    train: Literal["all", "tailors"] = "all"  # tailors: the common components stay as they are

    def __post_init__(self) -> None:
        check_least(self, common=1, tailors=1, domains=1)


def gates(labels: Tensor, config: Config) -> Tensor:
    """Which tailors serve tokens of these domains [..., C N]."""
    of_domain = F.one_hot(labels, config.domains)
    return of_domain.repeat_interleave(config.tailors, dim=-1)


def unit_factors(target: Target, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (U [..., O, count], V^T [..., count, I]) whose columns and rows are one long on average."""
    stack, outputs, inputs = target.stack, target.outputs, target.inputs
    up = *stack, outputs, count
    down = *stack, count, inputs
    U = normal(up, outputs**-0.5, generator)
    return U, normal(down, inputs**-0.5, generator)


@method(
    title="KIND, common and domain-gated components",
    paper="KIND: Knowledge Integration and Diversion in Diffusion Models",
    year=2024,
    tags={"matrix", "experts", "inexact-start"},
)
class KIND(WeightAdapter):
    """Components of a matrix, some of them gated by domain; see the module's card."""

    parts = (*COMMON, *OWN)
    targets = ("all-linear",)
    config: Config
    U: Tensor
    s: Tensor
    Vh: Tensor

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.common + config.tailors, target)
        if target.stack and config.domains > 1:
            raise MixwellError(f"{target.name} is a stack of experts, inside which the domains of tokens are not "
                               "known; leave it out of targets, or set domains: 1.")
        stack = target.stack
        U, Vh = unit_factors(target, config.common, generator)
        values = U, U.new_ones(*stack, config.common), Vh
        for name, value in zip(COMMON, values):
            if config.train == "all":
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        count = config.domains * config.tailors
        U, Vh = unit_factors(target, count, generator)
        self.tailor_U = nn.Parameter(U)
        self.tailor_s = nn.Parameter(U.new_ones(*stack, count))
        self.tailor_Vh = nn.Parameter(Vh)

    @torch.no_grad()
    def begin(self) -> None:
        """Take the components of W over, or the size that random ones need."""
        weight = self.target.numbers.float()
        config = self.config
        active = config.common + config.tailors
        if config.start == "random":
            length = weight.flatten(-2).norm(dim=-1, keepdim=True)
            size = length / active**0.5
            self.s.copy_(size.expand_as(self.s))
            self.tailor_s.copy_(size.expand_as(self.tailor_s))
            return
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        first, next_ones = slice(config.common), slice(config.common, active)
        self.U.copy_(U[..., first])
        self.s.copy_(S[..., first])
        self.Vh.copy_(Vh[..., first, :])
        self.tailor_s.copy_(self._for_each(S[..., next_ones], -1))
        if config.start == "svd":
            self.tailor_U.copy_(self._for_each(U[..., next_ones], -1))
            self.tailor_Vh.copy_(self._for_each(Vh[..., next_ones, :], -2))

    def _for_each(self, value: Tensor, dim: int) -> Tensor:
        """The same for every domain."""
        copies = [value] * self.config.domains
        return torch.cat(copies, dim)

    def after(self, x: Tensor, y: Tensor, weight: Any, U: Tensor, s: Tensor, Vh: Tensor, tailor_U: Tensor,
              tailor_s: Tensor, tailor_Vh: Tensor) -> Tensor:
        """U diag(g s) V^T x, each token with the tailors of its domain."""
        sizes = s.to(x.dtype)
        common = sizes * product(x, Vh)
        own_sizes = tailor_s.to(x.dtype)
        own = own_sizes * product(x, tailor_Vh)
        if self.config.domains > 1:
            own = own * self._gates(x)
        return product(common, U) + product(own, tailor_U)

    def _gates(self, x: Tensor) -> Tensor:
        """[..., C N] for tokens [..., I]; `MixwellError` where their domains are not known."""
        labels, domains = self.context.labels_T, self.config.domains
        if labels is None:
            raise MixwellError(f"KIND has tailors for {domains} domains and got no labels; give labels_B, or take one "
                               "domain's weights by for_domain.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < domains:
            raise MixwellError(f"KIND knows the domains 0 to {domains - 1} and got {int(labels.min())} to "
                               f"{int(labels.max())}; set domains.")
        found = gates(labels, self.config)
        return found.view(*x.shape[:-1], -1).to(x.dtype)

    def delta(self, weight: Tensor, *parts: Tensor) -> Tensor:
        """U diag(s) V^T - W of one domain; `MixwellError` where there are several."""
        if self.config.domains > 1:
            raise MixwellError(f"{self.target.name}: the change depends on the domain of the tokens, so no matrix "
                               "holds it; take one domain's by for_domain.")
        return self.matrix(parts, 0) - weight

    def matrix(self, parts: tuple[Tensor, ...], domain: int | None) -> Tensor:
        """The weight that a domain sees; with None, that of the common components alone."""
        U, s, Vh, tailor_U, tailor_s, tailor_Vh = parts
        common = (U * s) @ Vh
        if domain is None:
            return common
        first = domain * self.config.tailors
        own = slice(first, first + self.config.tailors)
        scaled = tailor_U[:, own] * tailor_s[own]
        return common + scaled @ tailor_Vh[own]


@torch.no_grad()
def for_domain(there: Attached, domain: int | None = None) -> dict[str, Tensor]:
    """The weights that a domain sees, by target; with None those of the common components alone.

    Raises `MixwellError` for a domain that there are no tailors for.
    """
    found: dict[str, Tensor] = {}
    for name, adapter in there.adapters.items():
        domains = adapter.config.domains
        if domain is not None and not 0 <= domain < domains:
            raise MixwellError(f"domain is {domain}; KIND knows the domains 0 to {domains - 1}.")
        parts = adapter.bound().parts
        if adapter.target.stack:
            own = [adapter.matrix(bound.parts, domain) for bound in adapter.bound().unbind()]
            found[name] = torch.stack(own)
        else:
            found[name] = adapter.matrix(parts, domain)
    return found


@torch.no_grad()
def inherit(there: Attached, source: Attached) -> None:
    """Take the common components of another KIND over, for tailors of new domains beside them."""
    for name, adapter in there.adapters.items():
        given = source.adapters.get(name)
        if given is None or given.U.shape != adapter.U.shape:
            raise MixwellError(f"{name}: the source has no common components of this shape; attach both with the same "
                               "targets and the same number of common components.")
        for part in COMMON:
            getattr(adapter, part).copy_(getattr(given, part))


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, two common components and one tailor of one domain."""
    return {"target": example_target(generator), "config": Config(common=2, tailors=1)}
