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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the slot mixture module; `ValueError` for one out of range."""

    n_slots: int = 7  # K
    iterations: int = 5  # of E and M steps
    hidden_dim: int = 128  # of the perceptrons
    mode: Literal["learned", "plain"] = "learned"  # with nets, or EM itself
    density: Literal["tempered", "complete"] = "tempered"  # in the E step: the released code's, or the Gaussian
    gradient: Literal["unrolled", "last"] = "last"  # through every iteration, or through one more after the others
    floor: float = 1e-4  # smallest variance

    def __post_init__(self) -> None:
        known = {
            "mode": ("learned", "plain"),
            "density": ("tempered", "complete"),
            "gradient": ("unrolled", "last"),
        }
        for name, options in known.items():
            value = getattr(self, name)
            if value not in options:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(options)}")
        counts = (self.n_slots, self.iterations, self.hidden_dim)
        if min(counts) < 1 or self.floor <= 0:
            raise ValueError(f"n_slots, iterations, hidden_dim, floor are {self.n_slots}, {self.iterations}, "
                             f"{self.hidden_dim}, {self.floor}; expected 1 or more, and above 0")


class Mixture(NamedTuple):
    """Diagonal normals and their weights."""

    mean_BKD: Tensor
    variance_BKD: Tensor
    weights_BK: Tensor

    def detach(self) -> Mixture:
        """The same without gradients."""
        return Mixture(*(part.detach() for part in self))


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
    D = x_BND.shape[-1]
    mean_BK1D, variance_BK1D = mean_BKD[:, :, None], variance_BKD[:, :, None]
    gap_BKND = x_BND[:, None] - mean_BK1D
    square_BKN = (gap_BKND**2 / variance_BK1D).sum(-1)
    if tempered:
        log_BKN = -square_BKN / D**0.5
    else:
        log_scale_BK = 0.5 * variance_BKD.log().sum(-1)
        log_BKN = log_normal(square_BKN, log_scale_BK[..., None], D)
    tiny = torch.finfo(x_BND.dtype).tiny
    log_weights_BK = weights_BK.clamp(min=tiny).log()
    log_BKN = log_BKN + log_weights_BK[..., None]
    log_BN = log_BKN.logsumexp(1)
    log_resp_BKN = log_BKN - log_BN[:, None]
    return log_resp_BKN.exp(), log_BN


def spread(x_BND: Tensor, share_BKN: Tensor, mean_BKD: Tensor, floor: float) -> Tensor:
    """Variances (B, K, D) around given means; `share_BKN` sums to one over features."""
    gap_BKND = x_BND[:, None] - mean_BKD[:, :, None]
    variance_BKD = torch.einsum("bkn,bknd->bkd", share_BKN, gap_BKND**2)
    return variance_BKD.clamp(min=floor)


@method(
    title="Slot mixture module",
    paper="Object-Centric Learning with Slot Mixture Module",
    year=2024,
    tags={"module"},
)
class SlotMixture(nn.Module):
    """Sets of features to slots; see the module's card. `ValueError` where `dim` is below 1."""

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected 1 or more")
        self.dim = dim
        self.config = config = config or Config()
        self.start_mean_D = nn.Parameter(torch.zeros(dim))
        self.start_log_scale_D = nn.Parameter(torch.zeros(dim))
        if config.mode == "learned":
            self.norm_x = nn.LayerNorm(dim)
            self.norm_slot = nn.LayerNorm(2 * dim)
            self.norm_mlp = nn.LayerNorm(dim)
            self.to_query = nn.Linear(dim, dim, bias=False)
            self.to_key = nn.Linear(dim, dim, bias=False)
            self.to_value = nn.Linear(dim, dim, bias=False)
            self.gru = nn.GRUCell(dim, dim)
            self.mlp = _perceptron(dim, config.hidden_dim, dim)
            self.out = _perceptron(2 * dim, 2 * config.hidden_dim, dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                scale = parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=scale, generator=generator)
            elif "bias" in name:
                nn.init.zeros_(parameter)

    def forward(self, x_BND: Tensor, generator: torch.Generator | None = None,
                start_BKD: Tensor | None = None) -> Slots:
        """Slots of every set (B, N, D), from means `start_BKD` or from ones that are drawn.

        `ValueError` for other columns than `dim`, or a start of another shape.
        """
        if x_BND.ndim != 3 or x_BND.shape[2] != self.dim:
            raise ValueError(f"x has shape {tuple(x_BND.shape)}; expected (sets, features, {self.dim})")
        config = self.config
        now = self._start(x_BND, generator, start_BKD)
        key_BND, value_BND = self._read(x_BND)
        log_likelihoods = []
        for _ in range(config.iterations):
            resp_BKN, now, log_BN = self._step(key_BND, value_BND, now)
            log_likelihoods.append(log_BN.mean(-1))
        if config.gradient == "last":
            resp_BKN, now, log_BN = self._step(key_BND, value_BND, now.detach())
            log_likelihoods.append(log_BN.mean(-1))
        slots = _joined(now)
        if config.mode == "learned":
            slots = self.out(slots)
        return Slots(
            slots=slots,
            resp_BKN=resp_BKN,
            weights_BK=now.weights_BK,
            mean_BKD=now.mean_BKD,
            variance_BKD=now.variance_BKD,
            log_likelihood_BI=torch.stack(log_likelihoods, -1),
        )

    def _start(self, x_BND: Tensor, generator: torch.Generator | None, start_BKD: Tensor | None) -> Mixture:
        """The mixture before the first step."""
        B, K = len(x_BND), self.config.n_slots
        shape = (B, K, self.dim)
        scale_D = self.start_log_scale_D.exp()
        if start_BKD is None:
            noise_BKD = torch.randn(shape, generator=generator, dtype=x_BND.dtype)
            start_BKD = self.start_mean_D + scale_D * noise_BKD
        if start_BKD.shape != shape:
            raise ValueError(f"start has shape {tuple(start_BKD.shape)}; expected {shape}")
        variance_D = (2 * self.start_log_scale_D).exp()
        variance_BKD = variance_D.expand_as(start_BKD)
        weights_BK = x_BND.new_full((B, K), 1 / K)
        return Mixture(start_BKD, variance_BKD, weights_BK)

    def _read(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """What slots are compared with, and what they take."""
        if self.config.mode == "plain":
            return x_BND, x_BND
        normed_BND = self.norm_x(x_BND)
        return self.to_key(normed_BND), self.to_value(normed_BND)

    def _step(self, key_BND: Tensor, value_BND: Tensor, now: Mixture) -> tuple[Tensor, Mixture, Tensor]:
        """An E and an M step: responsibilities, the new mixture, log normalisers (B, N)."""
        learned = self.config.mode == "learned"
        mean_BKD, variance_BKD, weights_BK = now
        centre_BKD, width_BKD = mean_BKD, variance_BKD
        if learned:
            mean_BKD, log_scale_BKD = self.norm_slot(_joined(now)).chunk(2, -1)
            log_width_BKD = self.to_query(log_scale_BKD)
            centre_BKD = self.to_query(mean_BKD)
            width_BKD = (2 * log_width_BKD).exp()
        tempered = self.config.density == "tempered"
        resp_BKN, log_BN = expect(key_BND, centre_BKD, width_BKD, weights_BK, tempered)
        mass_BK = resp_BKN.sum(-1)
        least_BK = mass_BK.clamp(min=1e-12)
        share_BKN = resp_BKN / least_BK[..., None]
        new_BKD = share_BKN @ value_BND
        if learned:
            new_BKD = self._refine(new_BKD, mean_BKD)
        variance_BKD = spread(value_BND, share_BKN, new_BKD, self.config.floor)
        N = resp_BKN.shape[-1]
        mixture = Mixture(new_BKD, variance_BKD, mass_BK / N)
        return resp_BKN, mixture, log_BN

    def _refine(self, new_BKD: Tensor, old_BKD: Tensor) -> Tensor:
        """Means through the recurrent cell and a perceptron beside it."""
        new_SD = new_BKD.flatten(0, 1)
        old_SD = old_BKD.flatten(0, 1)
        gated_BKD = self.gru(new_SD, old_SD).view_as(new_BKD)
        normed_BKD = self.norm_mlp(gated_BKD)
        return gated_BKD + self.mlp(normed_BKD)


def _joined(mixture: Mixture) -> Tensor:
    """Means and log scales (B, K, 2 D)."""
    log_scale_BKD = 0.5 * mixture.variance_BKD.log()
    return torch.cat([mixture.mean_BKD, log_scale_BKD], -1)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = (
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
    return nn.Sequential(*layers)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two sets of ten features and three slots."""
    config = Config(n_slots=3, iterations=2, hidden_dim=8)
    module = SlotMixture(4, config, generator)
    x_BND = torch.randn(2, 10, 4, generator=generator)
    return {
        "module": module,
        "x_BND": x_BND,
        "generator": generator,
    }
