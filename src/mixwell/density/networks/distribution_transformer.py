"""Distribution transformer: a network that maps a prior Gaussian mixture and data to a posterior Gaussian mixture.

**Equation:** phi = {(w_k, mu_k, L_k)} is the prior p(theta | phi) = sum_k w_k N(theta; mu_k, L_k L_k'). Token k is
E(log w_k, mu_k, log diag L_k, tril L_k) with a perceptron E; data point n is F(z_n). Each block lets components attend
to components, then to data, then through a perceptron, all residual. A perceptron U reads w', mu', L' off every token.
Trained on draws (phi, theta, z) by -log q(theta | phi, z) - prior_weight log p(theta | U(E(phi))): the first is the
mean of KL(posterior || q) up to a constant, the second makes U the inverse of E, so that blocks start at the identity.
`output="residual"` reads corrections instead, log w' = log w + a, mu' = mu + L b, L' = L C, at first a = b = 0, C = I.

**Shapes:** K components and D columns of theta, N data points of X columns, B problems, S points theta of each. Tokens
(B, K, width); mask (B, N) is True at points that are there. K and N may differ from call to call.

**Reference:** Whittle, Ziomek, Rawling, Osborne (2025), Distribution Transformers: Fast Approximate Bayesian Inference
With On-The-Fly Prior Adaptation, arXiv:2502.02463; sizes, losses and zero starts as in the authors' code for mixtures
with a closed-form posterior.

**Differs:** written from the abstract and the authors' code, without the paper's text. Norms come before attention and
perceptrons, not after. log w stands for logit w, finite at K = 1. Data attention has a null key, so that it can
tell how many points there are and none at all are allowed; its last map starts at zero too. A component of
weight zero stays absent. `output="residual"` is ours. The gradient's norm is cut at 1; a tenth of the steps warms up.
Embeddings of priors that are no mixtures, and of data of several kinds, are left out.

**Fails when:** a prior or data lie far outside what was simulated; columns are not of order one; the posterior needs
more components than the prior has. Where each posterior is the next prior, errors add up.

**Cost:** O(layers B (K^2 width + K N width + (K + N) width^2 + K width hidden_dim)) a pass; O(B S K D^2) a density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.density._gaussian import log_diagonal, log_normal, whiten
from mixwell.density._training import cosine, set_rate, update

LEAST_LOG_WEIGHT = -20.0  # what the embedding sees of smaller weights


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the distribution transformer."""

    width: int = 32  # of tokens
    heads: int = 8  # of attention; divides width
    layers: int = 6  # blocks
    hidden_dim: int = 2048  # of the blocks' perceptrons
    embed_dim: int = 32  # hidden units of E, F and U
    output: Literal["free", "residual"] = "free"  # U gives the posterior, or corrections of the prior
    prior_weight: float = 1.0  # of the loss that makes U the inverse of E, 0 or more

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "hidden_dim", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads, {self.heads}")
        if self.output not in ("free", "residual"):
            raise ValueError(f"output is {self.output!r}; expected free or residual")
        if self.prior_weight < 0:
            raise ValueError(f"prior_weight is {self.prior_weight}; expected 0 or more")


class Mixture(NamedTuple):
    """A batch of Gaussian mixtures. `Mixture.of` checks what it is given."""

    log_weights_BK: Tensor
    means_BKD: Tensor
    cholesky_BKDD: Tensor  # lower triangular, positive diagonal

    @classmethod
    def of(cls, weights_BK: Tensor, means_BKD: Tensor, cholesky_BKDD: Tensor) -> Mixture:
        """From weights; ValueError where they are off the simplex, shapes disagree, or a factor is no Cholesky one."""
        shape = tuple(means_BKD.shape)
        if len(shape) != 3 or weights_BK.shape != shape[:2] or cholesky_BKDD.shape != (*shape, shape[2]):
            raise ValueError(f"shapes are {tuple(weights_BK.shape)}, {shape}, {tuple(cholesky_BKDD.shape)}; expected "
                             "(B, K), (B, K, D), (B, K, D, D)")
        if not bool((weights_BK >= 0).all() and ((weights_BK.sum(-1) - 1).abs() < 1e-4).all()):
            raise ValueError("weights are negative or do not sum to 1; expected a point of the simplex in every row")
        upper, diagonal = cholesky_BKDD.triu(1), cholesky_BKDD.diagonal(dim1=-2, dim2=-1)
        if not bool((upper == 0).all() and (diagonal > 0).all()):
            raise ValueError("expected lower triangular Cholesky factors with a positive diagonal")
        return cls(weights_BK.log(), means_BKD, cholesky_BKDD)

    @property
    def weights_BK(self) -> Tensor:
        """Sum to 1 over components."""
        return self.log_weights_BK.exp()

    @property
    def covariances_BKDD(self) -> Tensor:
        """L L'."""
        return self.cholesky_BKDD @ self.cholesky_BKDD.mT

    def log_prob(self, theta_BSD: Tensor) -> Tensor:
        """Log densities (B, S)."""
        white_BKSD = whiten(theta_BSD[:, None] - self.means_BKD[:, :, None], self.cholesky_BKDD)
        log_scale_BK1 = log_diagonal(self.cholesky_BKDD)[..., None]
        log_BKS = log_normal(white_BKSD.square().sum(-1), log_scale_BK1, theta_BSD.shape[-1])
        return (self.log_weights_BK[..., None] + log_BKS).logsumexp(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (B, count, D)."""
        which_BS = torch.multinomial(self.weights_BK, count, replacement=True, generator=generator)
        row_B1 = torch.arange(len(which_BS), device=which_BS.device)[:, None]
        means_BSD = self.means_BKD[row_B1, which_BS]
        noise_BSD = torch.randn(means_BSD.shape, generator=generator, dtype=means_BSD.dtype, device=means_BSD.device)
        return means_BSD + (self.cholesky_BKDD[row_B1, which_BS] @ noise_BSD[..., None])[..., 0]


class Simulated(NamedTuple):
    """What a simulator draws: priors, one theta from each, and data given it."""

    prior: Mixture
    theta_BD: Tensor
    data_BNX: Tensor
    mask_BN: Tensor | None = None


class Losses(NamedTuple):
    """Means over problems, nats."""

    posterior: Tensor  # -log q(theta | phi, z)
    prior: Tensor  # -log p(theta | U(E(phi)))


def flatten(mixture: Mixture) -> Tensor:
    """Unconstrained parameters (B, K, 1 + D + D (D + 1) / 2): log weight, mean, log diagonal, rest of L by rows."""
    D = mixture.means_BKD.shape[-1]
    row, column = torch.tril_indices(D, D, -1)
    log_weights_BK1 = mixture.log_weights_BK.clamp(min=LEAST_LOG_WEIGHT)[..., None]
    factor_BKDD = mixture.cholesky_BKDD
    log_diagonal_BKD = factor_BKDD.diagonal(dim1=-2, dim2=-1).log()
    return torch.cat([log_weights_BK1, mixture.means_BKD, log_diagonal_BKD, factor_BKDD[..., row, column]], -1)


def unflatten(flat_BKP: Tensor, prior: Mixture, residual: bool = False) -> Mixture:
    """The mixture behind parameters, or the prior corrected by them; components that the prior lacks stay absent."""
    D = prior.means_BKD.shape[-1]
    log_weights_BK1, means_BKD, log_diagonal_BKD, lower = flat_BKP.split([1, D, D, D * (D - 1) // 2], -1)
    row, column = torch.tril_indices(D, D, -1)
    cholesky_BKDD = log_diagonal_BKD.exp().diag_embed()
    cholesky_BKDD[..., row, column] = lower
    log_weights_BK = log_weights_BK1[..., 0]
    if residual:
        log_weights_BK = prior.log_weights_BK + log_weights_BK
        means_BKD = prior.means_BKD + (prior.cholesky_BKDD @ means_BKD[..., None])[..., 0]
        cholesky_BKDD = prior.cholesky_BKDD @ cholesky_BKDD
    log_weights_BK = log_weights_BK.masked_fill(prior.log_weights_BK == -math.inf, -math.inf)
    return Mixture(log_weights_BK.log_softmax(-1), means_BKD, cholesky_BKDD)


class Attention(nn.Module):
    """Multi-head attention; `null` adds a key and a value of zeros."""

    def __init__(self, width: int, heads: int, null: bool = False) -> None:
        super().__init__()
        self.heads, self.null = heads, null
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h_BSW: Tensor, source_BTW: Tensor, absent_BT: Tensor) -> Tensor:
        """(B, S, W), nothing read where `absent_BT`."""
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m, x in
                   ((self.query, h_BSW), (self.key, source_BTW), (self.value, source_BTW)))
        scores_BHST = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(absent_BT[:, None, None], -math.inf)
        scores_BHST = F.pad(scores_BHST, (0, int(self.null)))
        weights_BHST = scores_BHST.softmax(-1)[..., : absent_BT.shape[1]]
        return self.out((weights_BHST @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Components attend to each other, then to data, then each goes through a perceptron."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(3))
        self.among = Attention(config.width, config.heads)
        self.data = Attention(config.width, config.heads, null=True)
        self.up, self.down = nn.Linear(config.width, config.hidden_dim), nn.Linear(config.hidden_dim, config.width)

    def forward(self, h_BKW: Tensor, data_BNW: Tensor, lacking_BK: Tensor, absent_BN: Tensor) -> Tensor:
        """(B, K, W) to the same."""
        normed_BKW = self.norms[0](h_BKW)
        h_BKW = h_BKW + self.among(normed_BKW, normed_BKW, lacking_BK)
        h_BKW = h_BKW + self.data(self.norms[1](h_BKW), data_BNW, absent_BN)
        return h_BKW + self.down(F.gelu(self.up(self.norms[2](h_BKW))))


@method(
    title="Distribution transformer",
    paper="Distribution Transformers: Fast Approximate Bayesian Inference With On-The-Fly Prior Adaptation",
    year=2025,
    tags={"module", "float32"},
)
class DistributionTransformer(nn.Module):
    """Prior mixtures over `dim` columns and data of `data_dim` columns to posterior mixtures; see the card."""

    def __init__(self, dim: int, data_dim: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        if min(dim, data_dim) < 1:
            raise ValueError(f"dim is {dim} and data_dim {data_dim}; expected 1 or more")
        self.dim, self.data_dim, self.config = dim, data_dim, config or Config()
        width, hidden, parameters = self.config.width, self.config.embed_dim, 1 + dim + dim * (dim + 1) // 2
        self.embed, self.embed_data, self.unembed = (
            nn.Sequential(nn.Linear(a, hidden), nn.GELU(), nn.Linear(hidden, b))
            for a, b in ((parameters, width), (data_dim, width), (width, parameters)))
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.layers))
        head = ("unembed.2.weight",) if self.config.output == "residual" else ()
        zero = ("bias", "among.out.weight", "data.out.weight", "down.weight", *head)
        for name, parameter in self.named_parameters():
            if name.endswith(zero):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)

    def forward(self, prior: Mixture, data_BNX: Tensor, mask_BN: Tensor | None = None) -> Mixture:
        """Posteriors; points where `mask_BN` is False are not read. ValueError for shapes that do not fit."""
        self._check(prior, data_BNX, mask_BN)
        absent_BN = data_BNX.new_zeros(data_BNX.shape[:2], dtype=torch.bool) if mask_BN is None else ~mask_BN
        data_BNW = self.embed_data(data_BNX.masked_fill(absent_BN[..., None], 0))
        lacking_BK = prior.log_weights_BK == -math.inf
        h_BKW = self.embed(flatten(prior))
        for block in self.blocks:
            h_BKW = block(h_BKW, data_BNW, lacking_BK, absent_BN)
        return unflatten(self.unembed(h_BKW), prior, self.config.output == "residual")

    def reconstruct(self, prior: Mixture) -> Mixture:
        """The prior embedded and read off again, U(E(phi)), without blocks and data."""
        return unflatten(self.unembed(self.embed(flatten(prior))), prior, self.config.output == "residual")

    def losses(self, given: Simulated) -> Losses:
        """Both losses on simulated problems; training minimises posterior + prior_weight * prior."""
        theta_B1D = given.theta_BD[:, None]
        posterior = self(given.prior, given.data_BNX, given.mask_BN).log_prob(theta_B1D)
        return Losses(-posterior.mean(), -self.reconstruct(given.prior).log_prob(theta_B1D).mean())

    def _check(self, prior: Mixture, data_BNX: Tensor, mask_BN: Tensor | None) -> None:
        B = len(prior.means_BKD)
        if prior.means_BKD.shape[-1] != self.dim:
            raise ValueError(f"the prior has {prior.means_BKD.shape[-1]} columns; expected {self.dim}")
        if data_BNX.ndim != 3 or len(data_BNX) != B or data_BNX.shape[-1] != self.data_dim:
            raise ValueError(f"data has shape {tuple(data_BNX.shape)}; expected ({B}, points, {self.data_dim})")
        if mask_BN is not None and (mask_BN.shape != data_BNX.shape[:2] or mask_BN.dtype != torch.bool):
            raise ValueError(f"mask has shape {tuple(mask_BN.shape)} and type {mask_BN.dtype}; expected "
                             f"{tuple(data_BNX.shape[:2])} and torch.bool")


def train(model: DistributionTransformer, simulate: Callable[[int, torch.Generator], Simulated], *, steps: int,
          batch: int, lr: float = 1e-3, generator: torch.Generator) -> Iterator[Losses]:
    """Train on fresh problems `simulate(batch, generator)`; yields the losses of every step, detached."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    warm = max(1, steps // 10)
    for step in range(steps):
        set_rate(optimizer, lr * cosine(step, steps, warm))
        losses = model.losses(simulate(batch, generator))
        update(optimizer, losses.posterior + model.config.prior_weight * losses.prior, clip=1.0)
        yield Losses(*(v.detach() for v in losses))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two problems in the plane: three components, four data points of one column."""
    eye = torch.eye(2).expand(2, 3, 2, 2)
    prior = Mixture.of(torch.full((2, 3), 1 / 3), torch.randn(2, 3, 2, generator=generator), eye)
    config = Config(width=8, heads=2, layers=1, hidden_dim=16, embed_dim=8)
    return {"module": DistributionTransformer(2, 1, config, generator), "prior": prior,
            "data_BNX": torch.randn(2, 4, 1, generator=generator)}
