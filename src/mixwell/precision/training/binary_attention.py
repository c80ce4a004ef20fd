"""BiPFT: a binary transformer whose attention gets back, by low-rank estimates, what binarising took off.

**Equation:** linear: a sign(x + c) times alpha sign(W - mean W), alpha = mean |W - mean W|; a learned, at first
    2 mean |x| of the first batch. Attention: Q = Q_b + Q_p, K = K_b + K_p, so that Q K^T = Q_b K_b^T + Q_b K_p^T +
    Q_p K_b^T + Q_p K_p^T; the last three are estimated by q_m k_p^T + q_p k_m^T + q_p k_p^T, each a float map of the
    layer's input to `rank` numbers a token, for all heads. P_b = a clip(round(P / a), 0, 1), a at first 4 mean P;
    context P_b (V_b + v_p).
    Backward: W as it is; x where |x / a| <= 1; a over the root of the count.
**Shapes:** x [B, T, D], W [M, D]; Q, K, V [B, H, T, d]; q_m, q_p, k_m, k_p [B, T, rank], v_p [B, T, 1].
**Reference:** Xing et al. 2023 (2312.08937), section 3, and the authors' code.
**Differs:** the rank is an option, 1 in the release; alpha is one for a matrix; no projection in the middle is skipped.
**Fails when:** embeddings are binarised in a small model: everything is lost alike; the rank nears d: the float maps
    cost what was saved.
**Cost:** a bit a weight, 4 rank + 1 float rows beside a layer's four matrices; emulated here in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.precision.training._parts import Product, cast, product_example, sign

TINY = 1e-8  # the least scale


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BiPFT."""

    rank: int = 1  # numbers a token in the estimates of what is left; 0: none

    def __post_init__(self) -> None:
        check_least(self, rank=0)


class Scale(nn.Module):
    """A learned size of a tensor's codes; it starts from the first tensor that comes."""

    ready: Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.size = nn.Parameter(torch.ones(()))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        mean = x.abs().mean()
        self.size.copy_((self.factor * mean).clamp_min(TINY))
        self.ready.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """The size, its gradient over the root of the numbers in x."""
        count = x.numel()
        if count and not self.ready:
            self._start(x)
        root = max(count, 1) ** 0.5
        slow = self.size / root
        rest = self.size - slow
        return slow + rest.detach()


def binary_weight(weight: Tensor) -> Tensor:
    """alpha sign(W - mean W); its gradient goes to W as it is."""
    return cast(weight, _signed)


def _signed(weight: Tensor) -> Tensor:
    centred = weight - weight.mean()
    return centred.abs().mean() * sign(centred)


def scaled_sign(x: Tensor, size: Tensor) -> Tensor:
    """a sign(x); a gradient reaches x where |x| is at most a."""
    still = x.detach()
    inside = still.abs() <= size.detach()
    through = x * inside
    slope = through - through.detach()
    return size * sign(still) + slope


def scaled_share(share: Tensor, size: Tensor) -> Tensor:
    """a where a share is a half of a or more, else 0: a clip(round(p / a), 0, 1)."""
    steps = (share / size).clamp(0, 1)
    code = steps + (steps.round() - steps).detach()
    return code * size


def estimated(scores: Tensor, q_m: Tensor, q_p: Tensor, k_m: Tensor, k_p: Tensor) -> Tensor:
    """Q_b K_b^T [B, H, T, T] and the estimates of the three other terms, each part [B, T, R]."""
    sided = q_m @ k_p.mT + q_p @ k_m.mT
    terms = sided + q_p @ k_p.mT
    return scores + terms.unsqueeze(1)


class BinaryAttention(nn.Module):
    """Attention [B, T, D] -> [B, T, D] of binary maps, scores and weights, with `rank` estimates of what is left."""

    def __init__(self, dim: int, num_heads: int, config: Config, generator: torch.Generator,
                 causal: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim is {dim}; expected a multiple of {num_heads} heads")
        self.num_heads, self.config, self.causal = num_heads, config, causal
        self.weights = nn.ParameterList()
        self.maps = nn.ModuleList()
        self.sizes = nn.ModuleList()
        for _ in range(4):  # queries, keys, values and what comes out, whose size is that of attention's weights
            drawn = _drawn(dim, dim, generator)
            self.weights.append(drawn)
            own = BinaryMap((dim, dim), config, generator)
            self.maps.append(own)
        for factor in (2.0, 2.0, 2.0, 4.0):
            size = Scale(factor)
            self.sizes.append(size)
        ranks = [config.rank] * 4
        self.parts = [*ranks, 1] if config.rank else []
        estimates = _drawn(sum(self.parts), dim, generator)
        self.estimates = nn.Parameter(estimates)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed tokens."""
        q, k, v = self._heads(x, 0), self._heads(x, 1), self._heads(x, 2)
        scores = q @ k.mT
        if self.parts:
            found = F.linear(x, self.estimates)
            *estimates, v_p = found.split(self.parts, -1)
            scores = estimated(scores, *estimates)
            v = v + v_p.unsqueeze(1)
        root = q.shape[-1] ** 0.5
        kept = self._shares(scores / root)
        mixed = kept @ v
        heads = mixed.transpose(1, 2)
        tokens = heads.flatten(-2)
        result: Tensor = self.maps[3](tokens, self.weights[3])
        return result

    def _heads(self, x: Tensor, place: int) -> Tensor:
        """Queries, keys or values [B, H, T, d] in one bit."""
        weight = self.weights[place]
        whole = self.maps[place](x, weight)
        split = whole.unflatten(-1, (self.num_heads, -1))
        heads = split.transpose(1, 2)
        size = self.sizes[place](heads)
        return scaled_sign(heads, size)

    def _shares(self, scores: Tensor) -> Tensor:
        """Attention's weights in one bit."""
        if self.causal:
            positions = scores.shape[-1]
            later = torch.ones(positions, positions, dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(later.triu(1), -torch.inf)
        shares = scores.softmax(-1)
        size = self.sizes[3](shares)
        return scaled_share(shares, size)


def _drawn(rows: int, inputs: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(rows, inputs, generator=generator)
    return drawn / inputs**0.5


@method(title="Binary transformers with low-rank estimates of what binarising took off",
        paper=("BiPFT: Binary Pre-trained Foundation Transformer with Low-rank Estimation of Binarization Residual "
               "Polynomials"), year=2023)
class BinaryMap(Product):
    """A linear map of BiPFT's, as `BinaryAttention` has four of; see the module's card."""

    config: Config
    learns = True

    def __init__(self, shape: tuple[int, int], config: Config, generator: torch.Generator) -> None:
        super().__init__(shape, config, generator)
        self.shift = nn.Parameter(torch.zeros(shape[1]))
        self.size = Scale(2.0)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        moved = x + self.shift
        size = self.size(moved)
        signs = scaled_sign(moved, size)
        codes = binary_weight(weight)
        return F.linear(signs, codes)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config())
