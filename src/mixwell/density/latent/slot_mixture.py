"""Slot mixture module: slots that divide a set of features as the components of a Gaussian mixture fitted to it.

**Equation:** per set, gamma_kn is proportional over k to pi_k exp(-sum_d (k_n - q_k)^2 / s_k^2 / sqrt(D)) with
(q_k, log s_k) = W_q norm([mu_k, log sigma_k]); pi_k = mean_n gamma_kn, mu'_k = sum_n gamma_kn v_n / sum_n gamma_kn,
mu_k <- g + MLP(norm(g)) with g = GRU(mu'_k, mu_k), sigma_k^2 = sum_n gamma_kn (v_n - mu_k)^2 / sum_n gamma_kn; repeated
`iterations` times. A slot is MLP([mu_k, log sigma_k]). `density="complete"` puts the Gaussian density in the place of
the tempered exponential. `mode="plain"` takes all nets away: with complete densities EM of a diagonal Gaussian
mixture, unrolled, and slots [mu_k, log sigma_k].

**Shapes:** x (B, N, D) sets of N features; slots (B, K, D), or (B, K, 2 D) when plain; resp (B, K, N).

**Reference:** Kirilenko, Vorobyov, Kovalev, Panov (2024), Object-Centric Learning with Slot Mixture Module, ICLR,
arXiv:2311.04640, section 3.2 and algorithm 1; tempering and norms as in the authors' code.

**Differs:** variances have a floor. Slots' means are drawn from one learned Gaussian and their widths start at its own,
without the variant that predicts them from the set.

**Fails when:** K is larger than the number of distinct features: spare slots share a cluster or collapse to the floor.

**Cost:** O(iterations B N K D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the slot mixture module."""

    n_slots: int = 7  # K
    iterations: int = 5  # of E and M steps
    hidden_dim: int = 128  # of the perceptrons
    mode: Literal["learned", "plain"] = "learned"  # with nets, or EM itself
    density: Literal["tempered", "complete"] = "tempered"  # in the E step: the released code's, or the Gaussian
    gradient: Literal["unrolled", "last"] = "last"  # through every iteration, or through one more after the others
    floor: float = 1e-4  # smallest variance

    def __post_init__(self) -> None:
        known = {"mode": ("learned", "plain"), "density": ("tempered", "complete"), "gradient": ("unrolled", "last")}
        for name, options in known.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(options)}")
        if min(self.n_slots, self.iterations, self.hidden_dim) < 1 or self.floor <= 0:
            raise ValueError(f"n_slots, iterations, hidden_dim, floor are {self.n_slots}, {self.iterations}, "
                             f"{self.hidden_dim}, {self.floor}; expected 1 or more, and above 0")


@dataclass(frozen=True)
class Slots:
    """What the module gives: slots, responsibilities and the mixture behind them."""

    slots: Tensor  # (B, K, D), or (B, K, 2 D) when plain
    resp_BKN: Tensor  # sums to 1 over slots
    weights_BK: Tensor
    mean_BKD: Tensor
    variance_BKD: Tensor
    log_likelihood_BI: Tensor  # mean log normaliser of the E step, nats a feature, at each of the I steps


def expect(x_BND: Tensor, mean_BKD: Tensor, variance_BKD: Tensor, weights_BK: Tensor,
           tempered: bool = False) -> tuple[Tensor, Tensor]:
    """Responsibilities (B, K, N) and log normalisers (B, N) of a diagonal Gaussian mixture.

    `tempered` divides squared distances by sqrt(D) instead of 2 and leaves the determinant out.
    """
    square_BKN = ((x_BND[:, None] - mean_BKD[:, :, None]) ** 2 / variance_BKD[:, :, None]).sum(-1)
    if tempered:
        log_BKN = -square_BKN / x_BND.shape[-1] ** 0.5
    else:
        log_BKN = log_normal(square_BKN, 0.5 * variance_BKD.log().sum(-1)[..., None], x_BND.shape[-1])
    log_BKN = log_BKN + weights_BK.clamp(min=torch.finfo(x_BND.dtype).tiny).log()[..., None]
    log_BN = log_BKN.logsumexp(1)
    return (log_BKN - log_BN[:, None]).exp(), log_BN


def spread(x_BND: Tensor, share_BKN: Tensor, mean_BKD: Tensor, floor: float) -> Tensor:
    """Variances (B, K, D) around given means; `share_BKN` sums to one over features."""
    gap_BKND = x_BND[:, None] - mean_BKD[:, :, None]
    return torch.einsum("bkn,bknd->bkd", share_BKN, gap_BKND**2).clamp(min=floor)


@method(
    title="Slot mixture module",
    paper="Object-Centric Learning with Slot Mixture Module",
    year=2024,
    tags={"module"},
)
class SlotMixture(nn.Module):
    """Sets of features to slots; see the module's card."""

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected 1 or more")
        self.dim, self.config = dim, config or Config()
        H = self.config.hidden_dim
        self.start_mean_D = nn.Parameter(torch.zeros(dim))
        self.start_log_scale_D = nn.Parameter(torch.zeros(dim))
        if self.config.mode == "learned":
            self.norm_x, self.norm_slot, self.norm_mlp = (nn.LayerNorm(d) for d in (dim, 2 * dim, dim))
            self.to_query, self.to_key, self.to_value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
            self.gru = nn.GRUCell(dim, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, H), nn.ReLU(), nn.Linear(H, dim))
            self.out = nn.Sequential(nn.Linear(2 * dim, 2 * H), nn.ReLU(), nn.Linear(2 * H, dim))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
            elif "bias" in name:
                nn.init.zeros_(parameter)

    def forward(self, x_BND: Tensor, generator: torch.Generator | None = None,
                start_BKD: Tensor | None = None) -> Slots:
        """Slots of every set, from means `start_BKD` or from ones that are drawn."""
        if x_BND.ndim != 3 or x_BND.shape[2] != self.dim:
            raise ValueError(f"x has shape {tuple(x_BND.shape)}; expected (sets, features, {self.dim})")
        B, K = len(x_BND), self.config.n_slots
        mean_BKD = self._start(B, generator, x_BND.dtype) if start_BKD is None else start_BKD
        if mean_BKD.shape != (B, K, self.dim):
            raise ValueError(f"start has shape {tuple(mean_BKD.shape)}; expected {(B, K, self.dim)}")
        variance_BKD = (2 * self.start_log_scale_D).exp().expand_as(mean_BKD)
        weights_BK = x_BND.new_full((B, K), 1 / K)
        key_BND = value_BND = x_BND
        if self.config.mode == "learned":
            x_BND = self.norm_x(x_BND)
            key_BND, value_BND = self.to_key(x_BND), self.to_value(x_BND)
        heights = []
        for i in range(self.config.iterations + (self.config.gradient == "last")):
            if self.config.gradient == "last" and i == self.config.iterations:
                mean_BKD, variance_BKD, weights_BK = mean_BKD.detach(), variance_BKD.detach(), weights_BK.detach()
            resp_BKN, mean_BKD, variance_BKD, weights_BK, log_BN = self._step(
                key_BND, value_BND, mean_BKD, variance_BKD, weights_BK)
            heights.append(log_BN.mean(-1))
        slots = torch.cat([mean_BKD, 0.5 * variance_BKD.log()], -1)
        if self.config.mode == "learned":
            slots = self.out(slots)
        return Slots(slots, resp_BKN, weights_BK, mean_BKD, variance_BKD, torch.stack(heights, -1))

    def _start(self, sets: int, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        noise_BKD = torch.randn(sets, self.config.n_slots, self.dim, generator=generator, dtype=dtype)
        return self.start_mean_D + self.start_log_scale_D.exp() * noise_BKD

    def _step(self, key_BND: Tensor, value_BND: Tensor, mean_BKD: Tensor, variance_BKD: Tensor,
              weights_BK: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        learned = self.config.mode == "learned"
        centre_BKD, width_BKD = mean_BKD, variance_BKD
        if learned:
            mean_BKD, log_scale_BKD = self.norm_slot(torch.cat([mean_BKD, 0.5 * variance_BKD.log()], -1)).chunk(2, -1)
            centre_BKD, width_BKD = self.to_query(mean_BKD), (2 * self.to_query(log_scale_BKD)).exp()
        resp_BKN, log_BN = expect(key_BND, centre_BKD, width_BKD, weights_BK, self.config.density == "tempered")
        mass_BK = resp_BKN.sum(-1)
        share_BKN = resp_BKN / mass_BK.clamp(min=1e-12)[..., None]
        new_BKD = share_BKN @ value_BND
        if learned:
            g_BKD = self.gru(new_BKD.flatten(0, 1), mean_BKD.flatten(0, 1)).view_as(new_BKD)
            new_BKD = g_BKD + self.mlp(self.norm_mlp(g_BKD))
        variance_BKD = spread(value_BND, share_BKN, new_BKD, self.config.floor)
        return resp_BKN, new_BKD, variance_BKD, mass_BK / resp_BKN.shape[-1], log_BN


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two sets of ten features and three slots."""
    module = SlotMixture(4, Config(n_slots=3, iterations=2, hidden_dim=8), generator)
    return {"module": module, "x_BND": torch.randn(2, 10, 4, generator=generator), "generator": generator}
