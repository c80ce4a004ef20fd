"""Squared circuit: a mixture that may subtract, kept non-negative by squaring.

**Equation:** p(x) = c(x)^2 / Z, c(x) = sum_k w_k prod_d f_kd(x_d) with real w_k, and Z = sum_ij w_i w_j prod_d int
f_id f_jd. Deep: every region of a binary tree over the columns holds h = U (h_left * h_right), c = w . h_root; the
square is integrated by the same recursion on matrices, M = U (M_left * M_right) U', Z = w' M w. Gaussian leaves have
int f_i f_j = N(m_i; m_j, s_i^2 + s_j^2), categorical ones sum_v t_iv t_jv, quadratic B-splines t_i G t_j.

**Shapes:** x (N, D), NaN where a column is to be integrated out; log densities (N,), in nats. K components a region.

**Reference:** Loconte, Sladek, Mengel, Trapp, Solin, Gillis, Vergari (2024), Subtractive Mixture Models via Squaring:
Representation and Learning, arXiv:2310.00724, equations 2 and 5, algorithm 1 and appendix B (leaves, signed logs).

**Differs:** one tree of regions instead of an ensemble of randomised ones; CP layers only. Gaussian leaves have
diagonal covariances. `kind` also gives the two rivals of the paper from the same code: squares of positive mixtures and
plain additive circuits.

**Fails when:** c nearly vanishes on data (gradients grow without bound); values of a spline leaf leave its interval.

**Cost:** O(N D K^2) for densities (O(N D K) when shallow), O(D K^3) for Z, O(N D K^3) with columns integrated out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import log_normal
from mixwell.density._training import descend

Signed = tuple[Tensor, Tensor]  # log of the absolute value, and the sign


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a squared circuit."""

    n_components: int = 8  # K of every region
    leaf: Literal["gaussian", "categorical", "spline"] = "gaussian"
    kind: Literal["subtractive", "squared", "additive"] = "subtractive"  # real weights, positive ones, no square
    structure: Literal["mixture", "tree"] = "mixture"  # one sum of products, or a sum at every split of the columns
    n_categories: int = 2  # of a categorical column: 0, 1, ...
    n_basis: int = 16  # quadratic B-splines of a spline column, 3 or more
    low: float = 0.0  # interval of spline columns
    high: float = 1.0

    def __post_init__(self) -> None:
        known = {"leaf": ("gaussian", "categorical", "spline"), "kind": ("subtractive", "squared", "additive"),
                 "structure": ("mixture", "tree")}
        for name, options in known.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")
        if self.n_components < 1 or self.n_categories < 2 or self.n_basis < 3:
            raise ValueError(f"n_components, n_categories, n_basis are {self.n_components}, {self.n_categories}, "
                             f"{self.n_basis}; expected at least 1, 2, 3")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; expected low below high")


def signed(value: Tensor) -> Signed:
    """Log absolute value (a tiny one for 0) and sign."""
    return value.abs().clamp(min=torch.finfo(value.dtype).tiny).log(), value.detach().sign()


def signed_matmul(x: Signed, weight_OK: Tensor) -> Signed:
    """(..., K) times weight', without leaving the range of floats."""
    top = x[0].detach().amax(-1, keepdim=True)
    log, sign = signed((x[1] * (x[0] - top).exp()) @ weight_OK.T)
    return log + top, sign


def spline_basis(x: Tensor, count: int, low: float, high: float) -> Tensor:
    """Quadratic B-splines on equal knots (..., count); they are not negative and sum to one within [low, high]."""
    cells = count - 2
    position = ((x - low) / (high - low) * cells).clamp(0, cells)
    cell = position.floor().clamp(max=cells - 1)
    t = position - cell
    parts = torch.stack([0.5 * (1 - t) ** 2, 0.5 + t * (1 - t), 0.5 * t**2], -1)
    index = cell.long()[..., None] + torch.arange(3, device=x.device)
    return torch.zeros(*x.shape, count, dtype=x.dtype, device=x.device).scatter(-1, index, parts)


def spline_integrals(count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """int B_a (count,) and int B_a B_b (count, count), exact by three Gauss points a cell, in float64."""
    cells = count - 2
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(3))
    x = (torch.arange(cells)[:, None] + (node + 1) / 2).flatten() / cells
    basis = spline_basis(x, count, 0.0, 1.0)
    scaled = weight.repeat(cells)[:, None] * basis * (high - low) / (2 * cells)
    return scaled.sum(0), scaled.T @ basis


@method(
    title="Squared subtractive circuit",
    paper="Subtractive Mixture Models via Squaring: Representation and Learning",
    year=2024,
    tags={"module", "density", "float32"},
)
class SquaredCircuit(nn.Module):
    """Density over `dim` columns; see the module's card. `kind` and `leaf` say which."""

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected 1 column or more")
        self.dim, self.config = dim, config or Config()
        K, leaf = self.config.n_components, self.config.leaf

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))

        def weights(*shape: int) -> nn.Parameter:  # real ones start positive: random signs cancel on the data
            if self.config.kind != "subtractive":
                return normal(*shape)
            return nn.Parameter(torch.rand(*shape, generator=generator, dtype=dtype))

        self.root_K = weights(K)
        self.sums = nn.ParameterList(weights(K, K) for _ in range(dim - 1 if self.config.structure == "tree" else 0))
        if leaf == "gaussian":
            self.mean_DK, self.log_scale_DK = normal(dim, K), nn.Parameter(torch.zeros(dim, K, dtype=dtype))
        else:
            self.table_DKV = weights(dim, K, self.config.n_categories if leaf == "categorical" else self.config.n_basis)
        self.mass_V: Tensor
        self.gram_VV: Tensor
        if leaf == "spline":
            mass, gram = spline_integrals(self.config.n_basis, self.config.low, self.config.high)
            self.register_buffer("mass_V", mass.to(dtype))
            self.register_buffer("gram_VV", gram.to(dtype))

    def start_at(self, x_ND: Tensor, generator: torch.Generator | None = None) -> None:
        """Put the means of Gaussian leaves on random rows and their scales at the columns' standard deviations."""
        if self.config.leaf != "gaussian":
            raise ValueError(f"start_at needs gaussian leaves, this circuit has {self.config.leaf} ones")
        rows = torch.randint(len(x_ND), (self.config.n_components,), generator=generator)
        with torch.no_grad():
            self.mean_DK.copy_(x_ND[rows].T)
            self.log_scale_DK.copy_(x_ND.std(0).clamp(min=1e-6).log()[:, None].expand_as(self.log_scale_DK))

    def _weight(self, raw: Tensor) -> Tensor:
        return raw if self.config.kind == "subtractive" else raw.exp()

    def _leaves(self, x_ND: Tensor) -> Signed:
        """f_kd(x_d), log absolute values and signs (N, D, K)."""
        config = self.config
        if config.leaf == "gaussian":
            z_NDK = (x_ND[..., None] - self.mean_DK) * (-self.log_scale_DK).exp()
            log = log_normal(z_NDK**2, self.log_scale_DK)
            return log, torch.ones_like(log)
        table_DKV = self._weight(self.table_DKV)
        if config.leaf == "categorical":
            one_hot_NDV = nn.functional.one_hot(x_ND.long(), config.n_categories).to(table_DKV.dtype)
        else:
            one_hot_NDV = spline_basis(x_ND, config.n_basis, config.low, config.high)
        return signed(torch.einsum("ndv,dkv->ndk", one_hot_NDV, table_DKV))

    def _integrals(self) -> Tensor:
        """int f_i f_j (D, K, K), or int f_k (D, K) of an additive circuit."""
        additive = self.config.kind == "additive"
        if self.config.leaf == "gaussian":
            if additive:
                return torch.ones_like(self.mean_DK)
            variance_DK = (2 * self.log_scale_DK).exp()
            total_DKK = variance_DK[:, :, None] + variance_DK[:, None, :]
            gap_DKK = self.mean_DK[:, :, None] - self.mean_DK[:, None, :]
            return log_normal(gap_DKK**2 / total_DKK, 0.5 * total_DKK.log()).exp()
        table_DKV = self._weight(self.table_DKV)
        if self.config.leaf == "categorical":
            return table_DKV.sum(-1) if additive else table_DKV @ table_DKV.mT
        return table_DKV @ self.mass_V if additive else table_DKV @ self.gram_VV @ table_DKV.mT

    def _up(self, parts: Signed, square: bool) -> Signed:
        """From leaves (..., D, K), or their products (..., D, K, K) with `square`, to the root (...,)."""
        weights = [self._weight(w) for w in self.sums]

        def through(x: Signed, weight_OK: Tensor) -> Signed:
            if not square:
                return signed_matmul(x, weight_OK)
            half = signed_matmul(x, weight_OK)
            return signed_matmul((half[0].mT, half[1].mT), weight_OK)

        axis = -3 if square else -2
        if self.config.structure == "mixture":
            product = parts[0].sum(axis), parts[1].prod(axis)
        else:
            regions = [(parts[0].select(axis, d), parts[1].select(axis, d)) for d in range(self.dim)]
            for weight in weights:  # the two that were made first, so that the tree is balanced
                left, right, *regions = regions
                regions.append(through((left[0] + right[0], left[1] * right[1]), weight))
            product = regions[0]
        log, sign = through(product, self._weight(self.root_K)[None])
        return (log.squeeze(-1).squeeze(-1), sign.squeeze(-1).squeeze(-1)) if square else (log[..., 0], sign[..., 0])

    def log_partition(self) -> Tensor:
        """log Z, a scalar."""
        return self._up(signed(self._integrals()), self.config.kind != "additive")[0]

    def amplitude(self, x_ND: Tensor) -> Signed:
        """log |c(x)| (N,) and its sign (N,)."""
        return self._up(self._leaves(self._checked(x_ND)), False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Log density of every row (N,), in nats; columns that are NaN are integrated out."""
        x_ND = self._checked(x_ND)
        missing_ND = x_ND.isnan()
        additive = self.config.kind == "additive"
        log, sign = self._leaves(x_ND.masked_fill(missing_ND, self.config.low))
        if not bool(missing_ND.any()):
            top = self._up((log, sign), False)[0]
            return (top if additive else 2 * top) - self.log_partition()
        if not additive:
            log, sign = log[..., :, None] + log[..., None, :], sign[..., :, None] * sign[..., None, :]
        log_i, sign_i = signed(self._integrals())
        mask = missing_ND.reshape(*missing_ND.shape, *[1] * (log.ndim - 2))
        return self._up((torch.where(mask, log_i, log), torch.where(mask, sign_i, sign)), not additive)[0] \
            - self.log_partition()

    def _checked(self, x_ND: Tensor) -> Tensor:
        config = self.config
        if x_ND.ndim != 2 or x_ND.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x_ND.shape)}; expected (rows, {self.dim})")
        seen = x_ND[~x_ND.isnan()]
        if config.leaf == "spline" and bool(((seen < config.low) | (seen > config.high)).any()):
            raise ValueError(f"x leaves [{config.low}, {config.high}]; scale it or widen low and high")
        if config.leaf == "categorical" and bool(((seen != seen.floor()) | (seen < 0)
                                                  | (seen >= config.n_categories)).any()):
            raise ValueError(f"x holds values outside 0, ..., {config.n_categories - 1}; code the categories so")
        return x_ND.to(self.root_K.dtype)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, points: int = 512) -> Tensor:
        """Rows (count, D) drawn column by column; continuous ones by inverting a density on `points` points."""
        x_ND = torch.full((count, self.dim), torch.nan, dtype=self.root_K.dtype)
        for d in range(self.dim):
            grid_G = self._grid(d, points)
            trial = x_ND[:, None].repeat(1, len(grid_G), 1)
            trial[..., d] = grid_G
            p_NG = self(trial.flatten(0, 1)).view(count, -1).softmax(-1)
            if self.config.leaf == "categorical":
                x_ND[:, d] = grid_G[torch.multinomial(p_NG, 1, generator=generator)[:, 0]]
                continue
            rise_NG = nn.functional.pad((p_NG[:, 1:] + p_NG[:, :-1]).cumsum(-1), (1, 0))
            u_N1 = torch.rand(count, 1, generator=generator, dtype=x_ND.dtype) * rise_NG[:, -1:]
            cell_N1 = torch.searchsorted(rise_NG, u_N1, right=True).clamp(1, points - 1)
            low, high = rise_NG.gather(1, cell_N1 - 1), rise_NG.gather(1, cell_N1)
            share = (u_N1 - low) / (high - low).clamp(min=1e-30)
            x_ND[:, d] = (grid_G[cell_N1 - 1] + share * (grid_G[cell_N1] - grid_G[cell_N1 - 1]))[:, 0]
        return x_ND

    def _grid(self, d: int, points: int) -> Tensor:
        config, dtype = self.config, self.root_K.dtype
        if config.leaf == "categorical":
            return torch.arange(config.n_categories, dtype=dtype)
        if config.leaf == "spline":
            return torch.linspace(config.low, config.high, points, dtype=dtype)
        reach_K = 5 * self.log_scale_DK[d].exp()
        low, high = float((self.mean_DK[d] - reach_K).min()), float((self.mean_DK[d] + reach_K).max())
        return torch.linspace(low, high, points, dtype=dtype)


def train(model: SquaredCircuit, x_ND: Tensor, *, steps: int, lr: float, generator: torch.Generator,
          batch: int | None = None) -> Iterator[float]:
    """Maximum likelihood by Adam on batches of rows (all of them by default); yields each step's mean loss in nats."""
    def loss() -> Tensor:
        rows = x_ND if batch is None else x_ND[torch.randint(len(x_ND), (batch,), generator=generator)]
        return -model(rows).mean()

    yield from descend(model, loss, steps=steps, lr=lr)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four components in two columns and eight rows."""
    module = SquaredCircuit(2, Config(n_components=4), generator)
    return {"module": module, "x_ND": torch.randn(8, 2, generator=generator)}
