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
    """Options of the distribution transformer; `ValueError` for one out of range."""

    width: int = 32  # of tokens
    heads: int = 8  # of attention; divides width
    layers: int = 6  # blocks
    hidden_dim: int = 2048  # of the blocks' perceptrons
    embed_dim: int = 32  # hidden units of E, F and U
    output: Literal["free", "residual"] = "free"  # U gives the posterior, or corrections of the prior
    prior_weight: float = 1.0  # of the loss that makes U the inverse of E, 0 or more

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "hidden_dim", "embed_dim"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads, {self.heads}")
        outputs = ("free", "residual")
        if self.output not in outputs:
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
        shapes = [tuple(weights_BK.shape), shape, tuple(cholesky_BKDD.shape)]
        if len(shape) != 3 or shapes != [shape[:2], shape, (*shape, shape[2])]:
            raise ValueError(f"shapes are {shapes[0]}, {shapes[1]}, {shapes[2]}; expected (B, K), (B, K, D), "
                             "(B, K, D, D)")
        off_B = (weights_BK.sum(-1) - 1).abs()
        if not (weights_BK >= 0).all() or not (off_B < 1e-4).all():
            raise ValueError("weights are negative or do not sum to 1; expected a point of the simplex in every row")
        upper_BKDD = cholesky_BKDD.triu(1)
        diagonal_BKD = cholesky_BKDD.diagonal(dim1=-2, dim2=-1)
        if upper_BKDD.any() or not (diagonal_BKD > 0).all():
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
        gap_BKSD = theta_BSD[:, None] - self.means_BKD[:, :, None]
        white_BKSD = whiten(gap_BKSD, self.cholesky_BKDD)
        square_BKS = white_BKSD.square().sum(-1)
        log_scale_BK = log_diagonal(self.cholesky_BKDD)
        log_BKS = log_normal(square_BKS, log_scale_BK[..., None], theta_BSD.shape[-1])
        log_joint_BKS = self.log_weights_BK[..., None] + log_BKS
        return log_joint_BKS.logsumexp(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (B, count, D)."""
        which_BS = torch.multinomial(self.weights_BK, count, replacement=True, generator=generator)
        row_B1 = torch.arange(len(which_BS), device=which_BS.device)[:, None]
        means_BSD = self.means_BKD[row_B1, which_BS]
        cholesky_BSDD = self.cholesky_BKDD[row_B1, which_BS]
        noise_BSD = torch.randn(
            means_BSD.shape,
            generator=generator,
            dtype=means_BSD.dtype,
            device=means_BSD.device,
        )
        shift_BSD1 = cholesky_BSDD @ noise_BSD[..., None]
        return means_BSD + shift_BSD1[..., 0]


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
    log_weights_BK = mixture.log_weights_BK.clamp(min=LEAST_LOG_WEIGHT)
    factor_BKDD = mixture.cholesky_BKDD
    diagonal_BKD = factor_BKDD.diagonal(dim1=-2, dim2=-1)
    parts = (
        log_weights_BK[..., None],
        mixture.means_BKD,
        diagonal_BKD.log(),
        factor_BKDD[..., row, column],
    )
    return torch.cat(parts, -1)


def unflatten(flat_BKP: Tensor, prior: Mixture, residual: bool = False) -> Mixture:
    """The mixture behind parameters, or the prior corrected by them; components that the prior lacks stay absent."""
    D = prior.means_BKD.shape[-1]
    sizes = [1, D, D, D * (D - 1) // 2]
    log_weights_BK1, means_BKD, log_diagonal_BKD, lower_BKL = flat_BKP.split(sizes, -1)
    row, column = torch.tril_indices(D, D, -1)
    cholesky_BKDD = log_diagonal_BKD.exp().diag_embed()
    cholesky_BKDD[..., row, column] = lower_BKL
    log_weights_BK = log_weights_BK1[..., 0]
    if residual:
        log_weights_BK = prior.log_weights_BK + log_weights_BK
        shift_BKD1 = prior.cholesky_BKDD @ means_BKD[..., None]
        means_BKD = prior.means_BKD + shift_BKD1[..., 0]
        cholesky_BKDD = prior.cholesky_BKDD @ cholesky_BKDD
    lacking_BK = prior.log_weights_BK == -math.inf
    log_weights_BK = log_weights_BK.masked_fill(lacking_BK, -math.inf)
    return Mixture(log_weights_BK.log_softmax(-1), means_BKD, cholesky_BKDD)


class Attention(nn.Module):
    """Multi-head attention; `null` adds a key and a value of zeros."""

    def __init__(self, width: int, heads: int, null: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.null = null
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, h_BSW: Tensor, source_BTW: Tensor, absent_BT: Tensor) -> Tensor:
        """(B, S, W), nothing read where `absent_BT`."""
        q_BHSE = self._split(self.query(h_BSW))
        k_BHTE = self._split(self.key(source_BTW))
        v_BHTE = self._split(self.value(source_BTW))
        scale = q_BHSE.shape[-1] ** -0.5
        scores_BHST = q_BHSE @ k_BHTE.mT * scale
        scores_BHST = scores_BHST.masked_fill(absent_BT[:, None, None], -math.inf)
        with_null = F.pad(scores_BHST, (0, int(self.null)))
        weights_BHST = with_null.softmax(-1)[..., : absent_BT.shape[1]]
        read_BSHE = (weights_BHST @ v_BHTE).transpose(1, 2)
        return self.out(read_BSHE.flatten(2))

    def _split(self, x_BSW: Tensor) -> Tensor:
        """Heads apart: (B, H, S, E)."""
        x_BSHE = x_BSW.unflatten(-1, (self.heads, -1))
        return x_BSHE.transpose(1, 2)


class Block(nn.Module):
    """Components attend to each other, then to data, then each goes through a perceptron."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden_dim
        norms = [nn.LayerNorm(width) for _ in range(3)]
        self.norms = nn.ModuleList(norms)
        self.among = Attention(width, config.heads)
        self.data = Attention(width, config.heads, null=True)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, h_BKW: Tensor, data_BNW: Tensor, lacking_BK: Tensor, absent_BN: Tensor) -> Tensor:
        """(B, K, W) to the same."""
        normed_BKW = self.norms[0](h_BKW)
        among_BKW = self.among(normed_BKW, normed_BKW, lacking_BK)
        h_BKW = h_BKW + among_BKW
        normed_BKW = self.norms[1](h_BKW)
        read_BKW = self.data(normed_BKW, data_BNW, absent_BN)
        h_BKW = h_BKW + read_BKW
        normed_BKW = self.norms[2](h_BKW)
        hidden_BKH = F.gelu(self.up(normed_BKW))
        return h_BKW + self.down(hidden_BKH)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    up = nn.Linear(inputs, hidden)
    down = nn.Linear(hidden, outputs)
    return nn.Sequential(up, nn.GELU(), down)


@method(
    title="Distribution transformer",
    paper="Distribution Transformers: Fast Approximate Bayesian Inference With On-The-Fly Prior Adaptation",
    year=2025,
    tags={"module", "float32"},
)
class DistributionTransformer(nn.Module):
    """Prior mixtures over `dim` columns and data of `data_dim` columns to posterior mixtures; see the card.

    `ValueError` where `dim` or `data_dim` is below 1.
    """

    def __init__(self, dim: int, data_dim: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        if min(dim, data_dim) < 1:
            raise ValueError(f"dim is {dim} and data_dim {data_dim}; expected 1 or more")
        self.dim = dim
        self.data_dim = data_dim
        self.config = c = config or Config()
        parameters = 1 + dim + dim * (dim + 1) // 2
        self.embed = perceptron(parameters, c.embed_dim, c.width)
        self.embed_data = perceptron(data_dim, c.embed_dim, c.width)
        self.unembed = perceptron(c.width, c.embed_dim, parameters)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self._start(generator)

    def _start(self, generator: torch.Generator | None) -> None:
        """Blocks begin as the identity, and a residual head as no correction at all."""
        zero = ["bias", "among.out.weight", "data.out.weight", "down.weight"]
        if self.config.output == "residual":
            zero.append("unembed.2.weight")
        for name, parameter in self.named_parameters():
            if name.endswith(tuple(zero)):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                scale = parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=scale, generator=generator)

    def forward(self, prior: Mixture, data_BNX: Tensor, mask_BN: Tensor | None = None) -> Mixture:
        """Posteriors; points where `mask_BN` is False are not read. ValueError for shapes that do not fit."""
        self._check(prior, data_BNX, mask_BN)
        if mask_BN is None:
            absent_BN = data_BNX.new_zeros(data_BNX.shape[:2], dtype=torch.bool)
        else:
            absent_BN = ~mask_BN
        read_BNX = data_BNX.masked_fill(absent_BN[..., None], 0)
        data_BNW = self.embed_data(read_BNX)
        lacking_BK = prior.log_weights_BK == -math.inf
        h_BKW = self.embed(flatten(prior))
        for block in self.blocks:
            h_BKW = block(h_BKW, data_BNW, lacking_BK, absent_BN)
        return self._read(h_BKW, prior)

    def reconstruct(self, prior: Mixture) -> Mixture:
        """The prior embedded and read off again, U(E(phi)), without blocks and data."""
        h_BKW = self.embed(flatten(prior))
        return self._read(h_BKW, prior)

    def _read(self, h_BKW: Tensor, prior: Mixture) -> Mixture:
        residual = self.config.output == "residual"
        return unflatten(self.unembed(h_BKW), prior, residual)

    def losses(self, given: Simulated) -> Losses:
        """Both losses on simulated problems; training minimises posterior + prior_weight * prior."""
        theta_B1D = given.theta_BD[:, None]
        posterior = self(given.prior, given.data_BNX, given.mask_BN)
        log_posterior_B1 = posterior.log_prob(theta_B1D)
        prior = self.reconstruct(given.prior)
        log_prior_B1 = prior.log_prob(theta_B1D)
        return Losses(
            posterior=-log_posterior_B1.mean(),
            prior=-log_prior_B1.mean(),
        )

    def _check(self, prior: Mixture, data_BNX: Tensor, mask_BN: Tensor | None) -> None:
        B, _, D = prior.means_BKD.shape
        if self.dim != D:
            raise ValueError(f"the prior has {D} columns; expected {self.dim}")
        shape = tuple(data_BNX.shape)
        if len(shape) != 3 or shape[0] != B or shape[2] != self.data_dim:
            raise ValueError(f"data has shape {shape}; expected ({B}, points, {self.data_dim})")
        if mask_BN is None:
            return
        if mask_BN.shape != shape[:2] or mask_BN.dtype != torch.bool:
            raise ValueError(f"mask has shape {tuple(mask_BN.shape)} and type {mask_BN.dtype}; expected "
                             f"{shape[:2]} and torch.bool")


def train(model: DistributionTransformer, simulate: Callable[[int, torch.Generator], Simulated], *, steps: int,
          batch: int, lr: float = 1e-3, generator: torch.Generator) -> Iterator[Losses]:
    """Train on fresh problems `simulate(batch, generator)`; yields the losses of every step, detached."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    warm = max(1, steps // 10)
    for step in range(steps):
        share = cosine(step, steps, warm)
        set_rate(optimizer, lr * share)
        given = simulate(batch, generator)
        losses = model.losses(given)
        total = losses.posterior + model.config.prior_weight * losses.prior
        update(optimizer, total, clip=1.0)
        detached = [value.detach() for value in losses]
        yield Losses(*detached)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two problems in the plane: three components, four data points of one column."""
    config = Config(width=8, heads=2, layers=1, hidden_dim=16, embed_dim=8)
    means_BKD = torch.randn(2, 3, 2, generator=generator)
    prior = Mixture.of(
        torch.full((2, 3), 1 / 3),
        means_BKD,
        torch.eye(2).expand(2, 3, 2, 2),
    )
    module = DistributionTransformer(2, 1, config, generator)
    data_BNX = torch.randn(2, 4, 1, generator=generator)
    return {
        "module": module,
        "prior": prior,
        "data_BNX": data_BNX,
    }
