"""A mixture over columns of different kinds: blocks that are independent within a component share its weight.

**Equation:** p(x) = sum_k w_k prod_b p_bk(x_b), with b a Gaussian or Student-t block, a block of categories, a block
of counts. E step: r_nk = w_k prod_b p_bk(x_nb) / p(x_n). M step: each block's own, with the shared r.

B rows of a piece, D columns, S starts, K components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from mixwell.density._em import Family, Params, Tally
from mixwell.density._rows import ArrayRows, Piece, Rows, _patterns
from mixwell.density.mixtures._parts import MixtureEstimator

UNSORTED = ("covariances", "cholesky")  # parameters without an axis of components where covariances are tied
INIT_ROWS = 20_000  # rows that a start is computed from


@dataclass(frozen=True, eq=False)
class Block:
    """Columns of one kind and the estimator for them."""

    kind: str  # numeric, category, count
    estimator: Any
    columns: tuple[int, ...]
    floor_D: tuple[float, ...] = ()  # numeric: least variance of a component by column
    sizes: tuple[int, ...] = ()  # category: number of categories by column; codes count from 0


class BlockRows(ArrayRows):
    """Rows grouped by what their numeric columns lack; the other kinds take a missing value as it comes."""

    def __init__(self, x_ND: np.ndarray, numeric: Sequence[int]) -> None:
        super().__init__(x_ND)
        self._groups = _patterns(torch.from_numpy(x_ND)[:, list(numeric)])


class Part:
    """Sufficient statistics of one block, which add field by field."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __add__(self, other: Part) -> Part:
        return Part(type(self.value)(*(a + b for a, b in zip(self.value, other.value))))


class Sums(tuple):
    """Sufficient statistics of all blocks."""

    def __new__(cls, *parts: Part) -> Sums:
        return super().__new__(cls, parts)


class Product(Family):
    """Families side by side; only the numeric one, if there, has several ways to compute a step."""

    def __init__(self, blocks: Sequence[Block], families: Sequence[Family]) -> None:
        self.blocks, self.families = blocks, families
        self.numeric = next((i for i, b in enumerate(blocks) if b.kind == "numeric"), None)

    def part(self, params: Params | None, i: int) -> Params | None:
        """Parameters of block i; the weights count in the first block only."""
        if params is None:
            return None
        own = {name.partition(".")[2]: v for name, v in params.items() if name.startswith(f"{i}.")}
        return {"weights": params["weights"] if i == 0 else torch.ones_like(params["weights"]), **own}

    def levels(self, params: Params | None) -> tuple[Any, ...]:
        return (None,) if self.numeric is None else self.families[self.numeric].levels(self.part(params, self.numeric))

    def trusts(self, params: Params, level: Any) -> bool:
        i = self.numeric
        return i is None or self.families[i].trusts(self.part(params, i), level)  # type: ignore[arg-type]

    def refuse(self, params: Params) -> None:
        assert self.numeric is not None
        self.families[self.numeric].refuse(params)

    def kernel(self, params: Params | None, level: Any) -> ProductKernel:
        return ProductKernel(self.blocks, [family.kernel(self.part(params, i), level if i == self.numeric else None)
                                           for i, family in enumerate(self.families)])

    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        new: Params = {}
        for i, (family, part) in enumerate(zip(self.families, tally.statistics)):
            own = Tally(part.value, tally.log_likelihood_S, tally.weight)
            found = family.maximise(own, self.part(params, i), level if i == self.numeric else None)
            weights = found.pop("weights")
            new |= {f"{i}.{name}": value for name, value in found.items()} | ({"weights": weights} if i == 0 else {})
        return new


class ProductKernel:
    """Log densities of all blocks added up."""

    def __init__(self, blocks: Sequence[Block], kernels: Sequence[Any]) -> None:
        self.blocks, self.kernels = blocks, kernels

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        return min(kernel.rows(starts_times_components) for kernel in self.kernels)

    def _pieces(self, piece: Piece) -> Iterator[tuple[Any, Piece]]:
        for block, kernel in zip(self.blocks, self.kernels):
            observed = piece.observed_D if block.kind == "numeric" else None
            yield kernel, Piece(piece.x_BD[:, list(block.columns)], piece.index, observed)

    def state(self, piece: Piece) -> list[Any]:
        """What `tally` needs of a piece when the responsibilities are given."""
        return [kernel.state(own) for kernel, own in self._pieces(piece)]

    def joint(self, piece: Piece) -> tuple[list[Any], Tensor]:
        """States, and log weight plus log density (S, K, B)."""
        found = [kernel.joint(own) for kernel, own in self._pieces(piece)]
        return [state for state, _ in found], torch.stack([log_SKB for _, log_SKB in found]).sum(0)

    def tally(self, states: list[Any], resp_SKB: Tensor) -> Sums:
        """Every block's sums under the shared responsibilities."""
        return Sums(*(Part(kernel.tally(state, resp_SKB)) for kernel, state in zip(self.kernels, states)))


class ProductMixture(MixtureEstimator):
    """Mixture over blocks of columns; X (N, D) float64, NaN where a value is missing, categories as codes from 0.

    Fitted: `weights_` (K,), largest first, and `blocks_`, whose estimators carry the attributes of their kind.
    """

    _allow_nan = True

    def __init__(self, n_components: int = 1, *, blocks: Sequence[Block] = (), tol: float = 1e-4, max_iter: int = 300,
                 n_init: int = 1, random_state: Any = None) -> None:
        self.n_components = n_components
        self.blocks = blocks
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state
        self.init_params, self.init_size, self.batch_size = "kmeans", INIT_ROWS, None
        self.warm_start, self.verbose, self.verbose_interval, self.fixed = False, 0, 10, None

    def _validate_params(self) -> None:
        if not self.blocks:
            raise ValueError("blocks is empty; expected at least one block of columns.")

    def _open(self, X: Any, *, reset: bool) -> Rows:
        x_ND = np.array(X, dtype=np.float64)
        if reset:
            self.n_features_in_ = x_ND.shape[1]
        numeric = [c for block in self.blocks if block.kind == "numeric" for c in block.columns]
        return BlockRows(x_ND, numeric)

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        self.blocks_ = [Block(b.kind, clone(b.estimator).set_params(n_components=self.n_components), b.columns,
                              b.floor_D, b.sizes) for b in self.blocks]
        x_ND = next(rows.chunks())[1]
        return Product(self.blocks_, [_family_of(block, x_ND[:, list(block.columns)]) for block in self.blocks_])

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        found = [block.estimator._scoring(dtype, device) for block in self.blocks_]
        params = {f"{i}.{name}": v for i, (_, own) in enumerate(found) for name, v in own.items() if name != "weights"}
        return Product(self.blocks_, [family for family, _ in found]), {"weights": found[0][1]["weights"], **params}

    def _warm(self, family: Family) -> Params:
        raise NotImplementedError("a product mixture always starts anew")

    def _publish(self, family: Product, params: Params, like: Any) -> None:  # type: ignore[override]
        order = params["weights"].argsort(descending=True, stable=True)
        self.weights_ = params["weights"][order].numpy()
        for i, block in enumerate(self.blocks_):
            tied = getattr(block.estimator, "covariance_type", "") == "tied"
            own = {name: value if tied and name in UNSORTED else value[order]
                   for name, value in (family.part(params, i) or {}).items()}
            own["weights"] = params["weights"][order]
            mark_fitted(block)
            block.estimator._publish(family.families[i], own, like)

    def _n_parameters(self) -> int:
        shared = (len(self.blocks_) - 1) * (len(self.weights_) - 1)
        return sum(block.estimator._n_parameters() for block in self.blocks_) - shared

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        x_ND = np.empty((int(counts_K.sum()), self.n_features_in_))
        for block in self.blocks_:
            x_ND[:, list(block.columns)] = block.estimator._draw(rng, counts_K)
        return x_ND

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        parts = []
        for block in self.blocks_:
            own_ND = np.nan_to_num(x_ND[:, list(block.columns)])
            if block.kind == "category":
                parts += [np.eye(size)[np.clip(np.round(c).astype(int), 0, size - 1)]
                          for c, size in zip(own_ND.T, block.sizes)]
            else:
                points_ND = np.sqrt(own_ND) if block.kind == "count" else own_ND
                parts.append(points_ND / np.maximum(points_ND.std(0), 1e-12))
        return np.hstack(parts)


def mark_fitted(block: Block) -> None:
    """What an estimator notes of its rows when it is fitted alone."""
    estimator = block.estimator
    estimator.n_features_in_, estimator._dtype = len(block.columns), torch.float64
    estimator._device = torch.device("cpu")
    if block.kind == "category":
        estimator._text, estimator.categories_ = False, [np.arange(float(size)) for size in block.sizes]


def _family_of(block: Block, x_ND: Tensor) -> Any:
    mark_fitted(block)
    family: Any = block.estimator._build_family(ArrayRows(x_ND.contiguous()), None)
    if block.floor_D:
        floor_D = torch.tensor(block.floor_D, dtype=torch.float64) * family.frame.scale_D**2
        family.regularisation_D = torch.maximum(family.regularisation_D, floor_D)
    return family
