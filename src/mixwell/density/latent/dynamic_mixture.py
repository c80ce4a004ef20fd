"""Dynamic Gaussian mixture: sparse series whose latent clusters move by a recurrent net and mix a shared Gaussian set.

**Equation:** clusters: p(z_1) = 1/K, p(z_{t+1} | z_{1:t}) = softmax(MLP(h_t)), h_t = RNN(z_t, h_{t-1}). Emission:
psi_{t+1} = (1 - gamma) p(z_{t+1} | z_{1:t}) + gamma p(mu), x_{t+1} from sum_c psi_{t+1}[c] N(mu_c, I / sigma) with the
gate gamma = sigmoid(linear(h~_t)) or one number. Inference: q(z_t | x_{1:t}, z_{t-1}) = softmax(MLP(h~_t, z_{t-1})),
h~_t = RNN(x_t, h~_{t-1}), z_0 = 0; p(mu_c) = mean over series and steps of q(z_t = c | x_{1:t}). The bound is

    sum_t (1 - gamma_t) E_q(z_t) log p(x_t | z_t) + sum_t gamma_t sum_c p(mu_c) log p(x_t | c)
    - sum_t E_q(z_{1:t}) KL(q(z_{t+1} | x_{1:t+1}, z_t) || p(z_{t+1} | z_{1:t})) - KL(q(z_1 | x_1) || p(z_1))

with log p(x_t | c) over observed values alone, and q(z_t) from the chain of conditionals. Missing values are filled, at
the encoder's door, with sum_j rho_ij S_tj / sum_j lambda_tj, where kappa = exp(-alpha_j (t - s)^2),
lambda_tj = sum_s kappa m_sj, S_tj = sum_s kappa m_sj x_sj and rho_ii = 1.

**Shapes:** x (B, T, D) with mask (B, T, D), True where observed; K clusters, H hidden units, S steps ahead, P paths.

**Reference:** Wu, Ni, Cheng, Zong, Song, Chen, Liu, Zhang, Chen, Davidson (2021), Dynamic Gaussian Mixture based Deep
Generative Model For Robust Forecasting on Sparse Multivariate Time Series, AAAI, arXiv:2103.02164; the LSTM variant.

**Differs:** written from the authors' code and a public summary of the equations, without the paper's text. The form
with an ODE between steps is left out. The gate of step t reads the state before x_t, so that psi_t is a prediction; the
released code's has read x_t, and is averaged with a constant. p(mu) averages the marginals q(z_t), not conditionals on
one path; forecasts use its moving average over training, not the batch at hand. The encoder also reads the mask. The
divergence of z_1 has the weight of the others; a loss on filled values is left out. Paths "hard" and learned scales are
ours. Steps are equally spaced, series of one length.

**Fails when:** x is not about standardised, or `scale` far from the noise; one component takes all data early and keeps
them; a cluster moves within itself, since its forecast is one constant. Filled values read the whole window, so that
`cluster` is a filter only with `imputation="zero"`.

**Cost:** O(B T (T D + H (H + D + K) + K H (H + K))) a loss; P times O(B (T + S) H (H + D + K)) a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal
from mixwell.density._training import update

FOLLOW = 0.1  # of a batch's static weights in their moving average


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the dynamic Gaussian mixture; `ValueError` for one out of range."""

    n_clusters: int = 20  # k
    hidden_dim: int = 10  # of the recurrent nets and the perceptrons
    cell: Literal["lstm", "gru"] = "lstm"  # of both recurrent nets
    gamma: float | None = None  # share of the static weights, 0 to 1; None: the gate
    imputation: Literal["kernel", "zero"] = "kernel"  # what the encoder sees for missing values
    alpha: float = 0.01  # the kernel's alpha at first, per squared step
    path: Literal["gumbel", "hard", "mean"] = "gumbel"  # relaxed draws, straight-through draws, or q itself (the code)
    temperature: float = 0.5  # of "gumbel", and of the gradient of "hard"
    scales: Literal["fixed", "learned"] = "fixed"  # one scale for all, or one for each component and column
    scale: float = 0.1  # standard deviation of components, sigma^-1/2, in units of x; where learned, at first
    kl_weight: float = 1.0  # of both divergences in training; 1 is the bound

    def __post_init__(self) -> None:
        known = {
            "cell": ("lstm", "gru"),
            "imputation": ("kernel", "zero"),
            "path": ("gumbel", "hard", "mean"),
            "scales": ("fixed", "learned"),
        }
        for name, options in known.items():
            value = getattr(self, name)
            if value not in options:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(options)}")
        if self.n_clusters < 1 or self.hidden_dim < 1:
            raise ValueError(f"n_clusters is {self.n_clusters} and hidden_dim {self.hidden_dim}; expected 1 or more")
        for name in ("alpha", "temperature", "scale"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; expected 0 to 1, or None for the gate")
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight is {self.kl_weight}; expected 0 or more")


class Terms(NamedTuple):
    """Terms of the negative bound: means over series, nats a series; and the static weights they used."""

    dynamic: Tensor  # -(1 - gamma) log p(x | z) under the posterior's marginals
    static: Tensor  # -gamma log p(x | c) under the static weights
    transition: Tensor  # KL of z_2 .. z_T along one path
    start: Tensor  # KL of z_1
    weights_K: Tensor  # p(mu)

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """Their sum; with weight 1 the negative bound."""
        divergence = self.transition + self.start
        return self.dynamic + self.static + kl_weight * divergence


class Forecast(NamedTuple):
    """A Gaussian mixture for every step ahead, and draws of whole futures."""

    weights_BSK: Tensor  # psi, mean over paths
    means_KD: Tensor
    scales_KD: Tensor  # standard deviations
    samples_BPSD: Tensor

    @property
    def mean_BSD(self) -> Tensor:
        """Expected values."""
        return self.weights_BSK @ self.means_KD

    def log_prob(self, x_BSD: Tensor, mask_BSD: Tensor) -> Tensor:
        """Log densities (B, S) of the observed values of each step by itself; 0 where there are none."""
        log_BSK = emission(x_BSD, mask_BSD, self.means_KD, self.scales_KD)
        log_joint_BSK = self.weights_BSK.log() + log_BSK
        return log_joint_BSK.logsumexp(-1)


def impute(x_BTD: Tensor, mask_BTD: Tensor, alpha_D: Tensor, rho_DD: Tensor) -> Tensor:
    """x where observed, elsewhere a kernel mean over time and columns; 0 where nothing is near.

    `rho_DD[i, j]` is the weight of column j in column i; its diagonal is taken as 1.
    """
    _, T, D = x_BTD.shape
    dtype, device = x_BTD.dtype, x_BTD.device
    time_T11 = torch.arange(T, dtype=dtype, device=device)[:, None, None]
    gap_TT1 = time_T11 - time_T11.transpose(0, 1)
    kernel_TTD = (-alpha_D * gap_TT1**2).exp()
    known_BTD = x_BTD.masked_fill(~mask_BTD, 0)
    sums_BTD = torch.einsum("tsd,bsd->btd", kernel_TTD, known_BTD)
    intensity_BTD = torch.einsum("tsd,bsd->btd", kernel_TTD, mask_BTD.to(dtype))
    eye_DD = torch.eye(D, dtype=dtype, device=device)
    mixing_DD = rho_DD * (1 - eye_DD) + eye_DD
    smallest = torch.finfo(dtype).tiny
    total_BT1 = intensity_BTD.sum(-1, keepdim=True).clamp(min=smallest)
    smoothed_BTD = sums_BTD @ mixing_DD.T / total_BT1
    return torch.where(mask_BTD, known_BTD, smoothed_BTD)


def emission(x_BTD: Tensor, mask_BTD: Tensor, means_KD: Tensor, scales_KD: Tensor) -> Tensor:
    """log p(x_t | z_t = c) of the observed values (B, T, K)."""
    known_BTD = x_BTD.masked_fill(~mask_BTD, 0)
    known_BT1D = known_BTD[:, :, None]
    white_BTKD = (known_BT1D - means_KD) / scales_KD
    log_scales_KD = scales_KD.log()
    log_BTKD = log_normal(white_BTKD**2, log_scales_KD)
    absent_BT1D = ~mask_BTD[:, :, None]
    seen_BTKD = log_BTKD.masked_fill(absent_BT1D, 0)
    return seen_BTKD.sum(-1)


def marginals(conditional_BTKK: Tensor) -> Tensor:
    """q(z_t | x_{1:t}) (B, T, K) from q(z_t | x_{1:t}, z_{t-1}) with rows z_{t-1}; all rows of the first step agree."""
    q_BK = conditional_BTKK[:, 0, 0]
    rows = [q_BK]
    for conditional_BKK in conditional_BTKK[:, 1:].unbind(1):
        q_BK = torch.einsum("bi,bij->bj", q_BK, conditional_BKK)
        rows.append(q_BK)
    return torch.stack(rows, 1)


def draw(log_q: Tensor, path: str, temperature: float, generator: torch.Generator | None) -> Tensor:
    """A cluster from each row (..., K): relaxed ("gumbel"), one-hot with relaxed gradient ("hard"), or q ("mean")."""
    if path == "mean":
        return log_q.exp()
    smallest = torch.finfo(log_q.dtype).tiny
    exponential = torch.empty_like(log_q).exponential_(generator=generator)
    minus_gumbel = exponential.clamp(min=smallest).log()
    soft = ((log_q - minus_gumbel) / temperature).softmax(-1)
    if path == "gumbel":
        return soft
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1])
    gradient = soft - soft.detach()  # zero, with the relaxed draw's gradient
    return hard.to(soft.dtype) + gradient


@method(
    title="Dynamic Gaussian mixture of series",
    paper="Dynamic Gaussian Mixture based Deep Generative Model For Robust Forecasting on Sparse Multivariate Time "
          "Series",
    year=2021,
    tags={"module"},
)
class DynamicMixture(nn.Module):
    """Series of `dim` columns, standardised, with missing values; see the module's card.

    Calling it gives the `Terms` of the bound, `cluster` the posterior of clusters, `forecast` what comes next.
    `ValueError` where `dim` is below 1.
    """

    static_K: Tensor  # p(mu) for forecasts; `train` keeps it

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected 1 or more")
        self.dim = dim
        self.config = config = config or Config()
        H, K = config.hidden_dim, config.n_clusters
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.encoder = cell(2 * dim, H, batch_first=True)
        self.transition = cell(K, H, batch_first=True)
        self.to_posterior = nn.Sequential(nn.Linear(H + K, H), nn.Tanh(), nn.Linear(H, K))
        self.to_next = nn.Sequential(nn.Linear(H, H), nn.Tanh(), nn.Linear(H, K))
        if config.gamma is None:
            self.to_gate = nn.Linear(H, 1)
        self.means_KD = nn.Parameter(torch.empty(K, dim))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
        log_scales_KD = torch.full((K, dim), math.log(config.scale))
        self.log_scales_KD = nn.Parameter(log_scales_KD, requires_grad=config.scales == "learned")
        if config.imputation == "kernel":
            log_alpha_D = torch.full((dim,), math.log(config.alpha))
            self.log_alpha_D = nn.Parameter(log_alpha_D)
            self.rho_DD = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("static_K", torch.full((K,), 1 / K))

    def forward(self, x_BTD: Tensor, mask_BTD: Tensor, generator: torch.Generator | None = None) -> Terms:
        """Terms of the bound. ValueError for shapes that do not fit; unobserved values of x may be anything."""
        h_BTH, marginal_BTK = self._infer(x_BTD, mask_BTD)
        path_BTK, log_q_BTK = self._walk(h_BTH, self.config.path, generator)
        log_p_BTK = self._log_next(path_BTK)
        log_ratio_BTK = log_q_BTK - log_p_BTK
        kl_BT = (log_q_BTK.exp() * log_ratio_BTK).sum(-1)
        scales_KD = self.log_scales_KD.exp()
        log_x_BTK = emission(x_BTD, mask_BTD, self.means_KD, scales_KD)
        gamma_BT = self._gamma(_delayed(h_BTH))
        weights_K = marginal_BTK.mean((0, 1))
        expected_BT = (marginal_BTK * log_x_BTK).sum(-1)
        dynamic_BT = (1 - gamma_BT) * expected_BT
        static_BT = gamma_BT * (log_x_BTK @ weights_K)
        return Terms(
            dynamic=-dynamic_BT.sum(1).mean(),
            static=-static_BT.sum(1).mean(),
            transition=kl_BT[:, 1:].sum(1).mean(),
            start=kl_BT[:, 0].mean(),
            weights_K=weights_K,
        )

    def _log_next(self, path_BTK: Tensor) -> Tensor:
        """log p(z_t | z_1 .. z_{t-1}) along a path; the first cluster is uniform."""
        out_BTH, _ = self.transition(path_BTK)
        logits_BTK = self.to_next(out_BTH)
        log_p_BTK = logits_BTK.log_softmax(-1)
        uniform = -math.log(self.config.n_clusters)
        return _delayed(log_p_BTK, uniform)

    def cluster(self, x_BTD: Tensor, mask_BTD: Tensor) -> Tensor:
        """Posterior of clusters q(z_t | x_{1:t}) (B, T, K); errors as of the call."""
        _, marginal_BTK = self._infer(x_BTD, mask_BTD)
        return marginal_BTK

    @torch.no_grad()
    def forecast(self, x_BTD: Tensor, mask_BTD: Tensor, steps: int, samples: int,
                 generator: torch.Generator | None = None) -> Forecast:
        """The `steps` after the last of x, from `samples` cluster paths; each gives one drawn future.

        `ValueError` for fewer than one step or path, and as of the call.
        """
        if steps < 1 or samples < 1:
            raise ValueError(f"steps is {steps} and samples {samples}; expected 1 or more")
        self._check(x_BTD, mask_BTD)
        B, scales_KD = len(x_BTD), self.log_scales_KD.exp()
        path = "mean" if self.config.path == "mean" else "hard"
        x_RTD = x_BTD.repeat_interleave(samples, 0)
        mask_RTD = mask_BTD.repeat_interleave(samples, 0)
        h_RTH, state = self._encode(x_RTD, mask_RTD)
        path_RTK, _ = self._walk(h_RTH, path, generator)
        out_RTH, carry = self.transition(path_RTK)
        weights, drawn = [], []
        for _ in range(steps):
            log_p_RK = self.to_next(out_RTH[:, -1]).log_softmax(-1)
            gamma_R1 = self._gamma(h_RTH[:, -1:])
            psi_RK = (1 - gamma_R1) * log_p_RK.exp() + gamma_R1 * self.static_K
            weights.append(psi_RK)
            drawn.append(self._draw(psi_RK, scales_KD, generator))
            cluster_RK = draw(log_p_RK, path, self.config.temperature, generator)
            out_RTH, carry = self.transition(cluster_RK[:, None], carry)
            expected_R1D = (psi_RK @ self.means_KD)[:, None]
            seen_R1D = torch.ones_like(expected_R1D)
            h_RTH, state = self.encoder(torch.cat([expected_R1D, seen_R1D], -1), state)
        weights_BPSK = torch.stack(weights, 1).unflatten(0, (B, samples))
        samples_BPSD = torch.stack(drawn, 1).unflatten(0, (B, samples))
        return Forecast(weights_BPSK.mean(1), self.means_KD.clone(), scales_KD, samples_BPSD)

    def _draw(self, weights_RK: Tensor, scales_KD: Tensor, generator: torch.Generator | None) -> Tensor:
        """One value (R, D) from each mixture."""
        kind_R1 = torch.multinomial(weights_RK, 1, generator=generator)
        kind_R = kind_R1[:, 0]
        mean_RD = self.means_KD[kind_R]
        scale_RD = scales_KD[kind_R]
        noise_RD = torch.randn(mean_RD.shape, generator=generator, dtype=mean_RD.dtype, device=mean_RD.device)
        return mean_RD + scale_RD * noise_RD

    def _check(self, x_BTD: Tensor, mask_BTD: Tensor) -> None:
        shape = tuple(x_BTD.shape)
        if len(shape) != 3 or shape[1] < 1 or shape[2] != self.dim:
            raise ValueError(f"x has shape {shape}; expected (series, steps, {self.dim}), 1 step or more")
        if mask_BTD.shape != shape or mask_BTD.dtype != torch.bool:
            raise ValueError(f"mask has shape {tuple(mask_BTD.shape)} and type {mask_BTD.dtype}; expected "
                             f"{shape} and torch.bool")

    def _encode(self, x_BTD: Tensor, mask_BTD: Tensor) -> tuple[Tensor, Any]:
        filled_BTD = x_BTD.masked_fill(~mask_BTD, 0)
        if self.config.imputation == "kernel":
            alpha_D = self.log_alpha_D.exp()
            filled_BTD = impute(x_BTD, mask_BTD, alpha_D, self.rho_DD)
        seen_BTD = mask_BTD.to(x_BTD.dtype)
        inputs = torch.cat([filled_BTD, seen_BTD], -1)
        found: tuple[Tensor, Any] = self.encoder(inputs)
        return found

    def _infer(self, x_BTD: Tensor, mask_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """States of the encoder and marginals of the posterior."""
        self._check(x_BTD, mask_BTD)
        h_BTH, _ = self._encode(x_BTD, mask_BTD)
        B, T, _ = h_BTH.shape
        K = self.config.n_clusters
        eye_KK = torch.eye(K, dtype=h_BTH.dtype, device=h_BTH.device)
        before_TKK = eye_KK.repeat(T, 1, 1)
        before_TKK[0] = 0  # nothing comes before the first step
        before_BTKK = before_TKK.expand(B, -1, -1, -1)
        h_BT1H = h_BTH[:, :, None]
        h_BTKH = h_BT1H.expand(-1, -1, K, -1)
        known = torch.cat([h_BTKH, before_BTKK], -1)
        logits_BTKK = self.to_posterior(known)
        conditional_BTKK = logits_BTKK.softmax(-1)
        return h_BTH, marginals(conditional_BTKK)

    def _walk(self, h_BTH: Tensor, path: str, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """A path of clusters from the posterior, and log q(z_t | x_{1:t}, z_{t-1}) along it, both (B, T, K)."""
        z_BK = h_BTH.new_zeros(len(h_BTH), self.config.n_clusters)
        walked, conditionals = [], []
        for h_BH in h_BTH.unbind(1):
            known = torch.cat([h_BH, z_BK], -1)
            logits_BK = self.to_posterior(known)
            log_q_BK = logits_BK.log_softmax(-1)
            z_BK = draw(log_q_BK, path, self.config.temperature, generator)
            walked.append(z_BK)
            conditionals.append(log_q_BK)
        path_BTK, log_q_BTK = torch.stack(walked, 1), torch.stack(conditionals, 1)
        return path_BTK, log_q_BTK

    def _gamma(self, h_BTH: Tensor) -> Tensor:
        constant = self.config.gamma
        if constant is not None:
            return h_BTH.new_full(h_BTH.shape[:2], constant)
        logit_BT: Tensor = self.to_gate(h_BTH)[..., 0]
        return logit_BT.sigmoid()


def _delayed(x_BTH: Tensor, first: float = 0.0) -> Tensor:
    """The same one step later, a constant before it."""
    earlier = x_BTH[:, :-1]
    return F.pad(earlier, (0, 0, 1, 0), value=first)


def train(model: DynamicMixture, x_BTD: Tensor, mask_BTD: Tensor, *, steps: int, batch: int, lr: float = 1e-2,
          anneal_steps: int = 0, generator: torch.Generator) -> Iterator[Terms]:
    """Adam on batches of `batch` series; yields the terms of every step, detached.

    The loss is per observed value; the divergences' weight rises to `kl_weight` in a line over `anneal_steps`.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        rows_B = torch.randint(len(x_BTD), (batch,), generator=generator, device=x_BTD.device)
        mask = mask_BTD[rows_B]
        terms = model(x_BTD[rows_B], mask, generator)
        share = min(1.0, (step + 1) / max(anneal_steps, 1))
        total = terms.loss(model.config.kl_weight * share) * batch
        observed = mask.sum().clamp(min=1)
        update(optimizer, total / observed, clip=20.0)
        model.static_K.lerp_(terms.weights_K.detach(), FOLLOW)
        yield Terms(*(term.detach() for term in terms))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three series of five steps and two columns, half of the values missing."""
    config = Config(n_clusters=3, hidden_dim=4)
    x_BTD = torch.randn(3, 5, 2, generator=generator)
    module = DynamicMixture(2, config, generator)
    chance_BTD = torch.rand(3, 5, 2, generator=generator)
    return {
        "module": module,
        "x_BTD": x_BTD,
        "mask_BTD": chance_BTD < 0.5,
        "generator": generator,
    }
