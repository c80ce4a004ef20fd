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
from mixwell.density.circuits.trees import check_codes

Signed = tuple[Tensor, Tensor]  # log of the absolute value, and the sign


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a squared circuit; `ValueError` for one out of range."""

    n_components: int = 8  # K of every region
    leaf: Literal["gaussian", "categorical", "spline"] = "gaussian"
    kind: Literal["subtractive", "squared", "additive"] = "subtractive"  # real weights, positive ones, no square
    structure: Literal["mixture", "tree"] = "mixture"  # one sum of products, or a sum at every split of the columns
    n_categories: int = 2  # of a categorical column: 0, 1, ...
    n_basis: int = 16  # quadratic B-splines of a spline column, 3 or more
    low: float = 0.0  # interval of spline columns
    high: float = 1.0

    def __post_init__(self) -> None:
        known = {
            "leaf": ("gaussian", "categorical", "spline"),
            "kind": ("subtractive", "squared", "additive"),
            "structure": ("mixture", "tree"),
        }
        for name, options in known.items():
            value = getattr(self, name)
            if value not in options:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}")
        if self.n_components < 1 or self.n_categories < 2 or self.n_basis < 3:
            raise ValueError(f"n_components, n_categories, n_basis are {self.n_components}, {self.n_categories}, "
                             f"{self.n_basis}; expected at least 1, 2, 3")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; expected low below high")


def signed(value: Tensor) -> Signed:
    """Log absolute value (a tiny one for 0) and sign."""
    size = value.abs().clamp(min=torch.finfo(value.dtype).tiny)
    return size.log(), value.detach().sign()


def product(x: Signed, y: Signed) -> Signed:
    """x y."""
    log_x, sign_x = x
    log_y, sign_y = y
    return log_x + log_y, sign_x * sign_y


def signed_matmul(x: Signed, weight_OK: Tensor) -> Signed:
    """(..., K) times weight', without leaving the range of floats."""
    log_size, sign = x
    top = log_size.detach().amax(-1, keepdim=True)
    size = (log_size - top).exp()
    total = (sign * size) @ weight_OK.T
    log, new_sign = signed(total)
    return log + top, new_sign


def spline_basis(x: Tensor, count: int, low: float, high: float) -> Tensor:
    """Quadratic B-splines on equal knots (..., count); they are not negative and sum to one within [low, high]."""
    cells = count - 2
    share = (x - low) / (high - low)
    position = (share * cells).clamp(0, cells)
    cell = position.floor().clamp(max=cells - 1)
    t = position - cell
    falling = 0.5 * (1 - t) ** 2
    middle = 0.5 + t * (1 - t)
    rising = 0.5 * t**2
    parts = torch.stack([falling, middle, rising], -1)
    index = cell.long()[..., None] + torch.arange(3, device=x.device)
    empty = x.new_zeros(*x.shape, count)
    return empty.scatter(-1, index, parts)


def spline_integrals(count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """int B_a (count,) and int B_a B_b (count, count), exact by three Gauss points a cell, in float64."""
    cells = count - 2
    node, weight = np.polynomial.legendre.leggauss(3)
    within = (torch.from_numpy(node) + 1) / 2
    x = (torch.arange(cells)[:, None] + within).flatten() / cells
    basis = spline_basis(x, count, 0.0, 1.0)
    weights = torch.from_numpy(weight).repeat(cells)[:, None]
    scaled = weights * basis * (high - low) / (2 * cells)
    return scaled.sum(0), scaled.T @ basis


@method(
    title="Squared subtractive circuit",
    paper="Subtractive Mixture Models via Squaring: Representation and Learning",
    year=2024,
    tags={"module", "density", "float32"},
)
class SquaredCircuit(nn.Module):
    """Density over `dim` columns; see the module's card. `kind` and `leaf` say which.

    `ValueError` where `dim` is below 1.
    """

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}; expected 1 column or more")
        self.dim = dim
        self.config = c = config or Config()
        K = c.n_components

        def normal(*shape: int) -> nn.Parameter:
            draws = torch.randn(*shape, generator=generator, dtype=dtype)
            return nn.Parameter(draws)

        def weights(*shape: int) -> nn.Parameter:
            if c.kind != "subtractive":
                return normal(*shape)
            positive = torch.rand(*shape, generator=generator, dtype=dtype)  # random signs cancel on the data
            return nn.Parameter(positive)

        self.root_K = weights(K)
        splits = dim - 1 if c.structure == "tree" else 0
        self.sums = nn.ParameterList(weights(K, K) for _ in range(splits))
        if c.leaf == "gaussian":
            self.mean_DK = normal(dim, K)
            self.log_scale_DK = nn.Parameter(torch.zeros(dim, K, dtype=dtype))
        else:
            entries = c.n_categories if c.leaf == "categorical" else c.n_basis
            self.table_DKV = weights(dim, K, entries)
        self.mass_V: Tensor
        self.gram_VV: Tensor
        if c.leaf == "spline":
            mass_V, gram_VV = spline_integrals(c.n_basis, c.low, c.high)
            self.register_buffer("mass_V", mass_V.to(dtype))
            self.register_buffer("gram_VV", gram_VV.to(dtype))

    @torch.no_grad()
    def start_at(self, x_ND: Tensor, generator: torch.Generator | None = None) -> None:
        """Put the means of Gaussian leaves on random rows and their scales at the columns' standard deviations.

        `ValueError` for other leaves.
        """
        if self.config.leaf != "gaussian":
            raise ValueError(f"start_at needs gaussian leaves, this circuit has {self.config.leaf} ones")
        rows_K = torch.randint(len(x_ND), (self.config.n_components,), generator=generator)
        self.mean_DK.copy_(x_ND[rows_K].T)
        deviation_D = x_ND.std(0).clamp(min=1e-6)
        log_scale_D1 = deviation_D.log()[:, None]
        self.log_scale_DK.copy_(log_scale_D1.expand_as(self.log_scale_DK))

    def _weight(self, raw: Tensor) -> Tensor:
        return raw if self.config.kind == "subtractive" else raw.exp()

    def _leaves(self, x_ND: Tensor) -> Signed:
        """f_kd(x_d), log absolute values and signs (N, D, K)."""
        config = self.config
        if config.leaf == "gaussian":
            gap_NDK = x_ND[..., None] - self.mean_DK
            z_NDK = gap_NDK * (-self.log_scale_DK).exp()
            log_NDK = log_normal(z_NDK**2, self.log_scale_DK)
            return log_NDK, torch.ones_like(log_NDK)
        table_DKV = self._weight(self.table_DKV)
        if config.leaf == "categorical":
            codes_NDV = nn.functional.one_hot(x_ND.long(), config.n_categories).to(table_DKV.dtype)
        else:
            codes_NDV = spline_basis(x_ND, config.n_basis, config.low, config.high)
        value_NDK = torch.einsum("ndv,dkv->ndk", codes_NDV, table_DKV)
        return signed(value_NDK)

    def _integrals(self) -> Tensor:
        """int f_i f_j (D, K, K), or int f_k (D, K) of an additive circuit."""
        additive = self.config.kind == "additive"
        leaf = self.config.leaf
        if leaf == "gaussian":
            return torch.ones_like(self.mean_DK) if additive else self._overlaps()
        table_DKV = self._weight(self.table_DKV)
        if leaf == "categorical":
            return table_DKV.sum(-1) if additive else table_DKV @ table_DKV.mT
        if additive:
            return table_DKV @ self.mass_V
        return table_DKV @ self.gram_VV @ table_DKV.mT

    def _overlaps(self) -> Tensor:
        """Integrals (D, K, K) of products of two normal densities."""
        variance_DK = (2 * self.log_scale_DK).exp()
        total_DKK = variance_DK[:, :, None] + variance_DK[:, None, :]
        gap_DKK = self.mean_DK[:, :, None] - self.mean_DK[:, None, :]
        log_scale_DKK = 0.5 * total_DKK.log()
        return log_normal(gap_DKK**2 / total_DKK, log_scale_DKK).exp()

    def _up(self, parts: Signed, square: bool) -> Signed:
        """From leaves (..., D, K), or their products (..., D, K, K) with `square`, to the root (...,)."""
        through = _through_both if square else signed_matmul
        axis = -3 if square else -2
        weights = [self._weight(raw) for raw in self.sums]
        if self.config.structure == "mixture":
            top = parts[0].sum(axis), parts[1].prod(axis)
        else:
            regions = list(zip(parts[0].unbind(axis), parts[1].unbind(axis)))
            for weight_KK in weights:  # the two that were made first, so that the tree is balanced
                left, right, *regions = regions
                both = product(left, right)
                regions.append(through(both, weight_KK))
            (top,) = regions
        root_1K = self._weight(self.root_K)[None]
        log, sign = through(top, root_1K)
        single: tuple[Any, ...] = (..., *[0] * (-1 - axis))
        return log[single], sign[single]

    def log_partition(self) -> Tensor:
        """log Z, a scalar."""
        square = self.config.kind != "additive"
        log_z, _ = self._up(signed(self._integrals()), square)
        return log_z

    def amplitude(self, x_ND: Tensor) -> Signed:
        """log |c(x)| (N,) and its sign (N,); errors as of `forward`."""
        x_ND = self._checked(x_ND)
        return self._up(self._leaves(x_ND), False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Log density of every row (N,), in nats; columns that are NaN are integrated out.

        `ValueError` for other columns than `dim`, values outside a spline's interval, or values that are no category.
        """
        x_ND = self._checked(x_ND)
        missing_ND = x_ND.isnan()
        square = self.config.kind != "additive"
        leaves = self._leaves(x_ND.masked_fill(missing_ND, self.config.low))
        if missing_ND.any():
            if square:
                leaves = _pairs(leaves)
            integrals = signed(self._integrals())
            marginal = _where(missing_ND, integrals, leaves)
            log_N, _ = self._up(marginal, square)
        else:
            log_N, _ = self._up(leaves, False)
            log_N = 2 * log_N if square else log_N
        return log_N - self.log_partition()

    def _checked(self, x_ND: Tensor) -> Tensor:
        config = self.config
        if x_ND.ndim != 2 or x_ND.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x_ND.shape)}; expected (rows, {self.dim})")
        if config.leaf == "categorical":
            check_codes(x_ND, config.n_categories)
        outside = (x_ND < config.low) | (x_ND > config.high)  # false for NaN
        if config.leaf == "spline" and outside.any():
            raise ValueError(f"x leaves [{config.low}, {config.high}]; scale it or widen low and high")
        return x_ND.to(self.root_K.dtype)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, points: int = 512) -> Tensor:
        """Rows (count, D) drawn column by column; continuous ones by inverting a density on `points` points."""
        x_ND = torch.full((count, self.dim), torch.nan, dtype=self.root_K.dtype)
        for d in range(self.dim):
            grid_G = self._grid(d, points)
            trial_NGD = x_ND[:, None].repeat(1, len(grid_G), 1)
            trial_NGD[..., d] = grid_G
            log_NG = self(trial_NGD.flatten(0, 1)).view(count, -1)
            p_NG = log_NG.softmax(-1)
            if self.config.leaf == "categorical":
                drawn_N1 = torch.multinomial(p_NG, 1, generator=generator)
                x_ND[:, d] = grid_G[drawn_N1[:, 0]]
            else:
                x_ND[:, d] = draw_on_grid(grid_G, p_NG, generator)
        return x_ND

    def _grid(self, d: int, points: int) -> Tensor:
        config, dtype = self.config, self.root_K.dtype
        if config.leaf == "categorical":
            return torch.arange(config.n_categories, dtype=dtype)
        if config.leaf == "spline":
            return torch.linspace(config.low, config.high, points, dtype=dtype)
        mean_K = self.mean_DK[d]
        scale_K = self.log_scale_DK[d].exp()
        reach_K = 5 * scale_K
        low = float((mean_K - reach_K).min())
        high = float((mean_K + reach_K).max())
        return torch.linspace(low, high, points, dtype=dtype)


def _through_both(x: Signed, weight_OK: Tensor) -> Signed:
    """(..., K, K) times weight' on either side."""
    log, sign = signed_matmul(x, weight_OK)
    return signed_matmul((log.mT, sign.mT), weight_OK)


def _pairs(leaves: Signed) -> Signed:
    """Products (N, D, K, K) of every two components' leaves."""
    log_NDK, sign_NDK = leaves
    log_NDKK = log_NDK[..., :, None] + log_NDK[..., None, :]
    sign_NDKK = sign_NDK[..., :, None] * sign_NDK[..., None, :]
    return log_NDKK, sign_NDKK


def _where(missing_ND: Tensor, integrals: Signed, leaves: Signed) -> Signed:
    """Integrals (D, ...) in the columns that a row lacks, its leaves (N, D, ...) in the others."""
    log, sign = leaves
    log_integral, sign_integral = integrals
    further = [1] * (log.ndim - 2)
    mask = missing_ND.reshape(*missing_ND.shape, *further)
    new_log = torch.where(mask, log_integral, log)
    new_sign = torch.where(mask, sign_integral, sign)
    return new_log, new_sign


def draw_on_grid(grid_G: Tensor, p_NG: Tensor, generator: torch.Generator) -> Tensor:
    """Draws (N,) from densities that are proportional to p on a grid, by inverting their trapezoid integrals."""
    area_NC = p_NG[:, 1:] + p_NG[:, :-1]
    rise_NG = nn.functional.pad(area_NC.cumsum(-1), (1, 0))
    uniform_N1 = torch.rand(len(p_NG), 1, generator=generator, dtype=grid_G.dtype)
    u_N1 = uniform_N1 * rise_NG[:, -1:]
    right_N1 = torch.searchsorted(rise_NG, u_N1, right=True).clamp(1, len(grid_G) - 1)
    left_N1 = right_N1 - 1
    low_N1 = rise_NG.gather(1, left_N1)
    height_N1 = rise_NG.gather(1, right_N1) - low_N1
    share_N1 = (u_N1 - low_N1) / height_N1.clamp(min=1e-30)
    width_N1 = grid_G[right_N1] - grid_G[left_N1]
    x_N1 = grid_G[left_N1] + share_N1 * width_N1
    return x_N1[:, 0]


def train(model: SquaredCircuit, x_ND: Tensor, *, steps: int, lr: float, generator: torch.Generator,
          batch: int | None = None) -> Iterator[float]:
    """Maximum likelihood by Adam on batches of rows (all of them by default); yields each step's mean loss in nats."""

    def loss() -> Tensor:
        rows_BD = x_ND
        if batch is not None:
            drawn_B = torch.randint(len(x_ND), (batch,), generator=generator)
            rows_BD = x_ND[drawn_B]
        return -model(rows_BD).mean()

    yield from descend(model, loss, steps=steps, lr=lr)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four components in two columns and eight rows."""
    config = Config(n_components=4)
    module = SquaredCircuit(2, config, generator)
    x_ND = torch.randn(8, 2, generator=generator)
    return {"module": module, "x_ND": x_ND}
