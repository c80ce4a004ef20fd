"""Mixture over columns of different kinds: blocks that are independent within a component share its weight.

**Equation:** p(x) = sum_k w_k prod_b p_bk(x_b), with b a Gaussian or Student-t block, a block of categories, a block
of counts. E step: r_nk = w_k prod_b p_bk(x_nb) / p(x_n). M step: each block's own, with the shared r.

**Shapes:** X (N, D) numbers, categories as codes from 0, NaN where a value is missing; `weights_` (K,), largest first;
`blocks_`, whose estimators carry the attributes of their kind. B rows of a piece, S starts.

**Reference:** Hunt, Jorgensen (1999), Mixture Model Clustering using the MULTIMIX Program; local independence between
blocks as in latent class analysis.

**Differs:** written from the equation; the paper's location model (means that depend on a category) is not there.

**Fails when:** blocks depend on each other within a group: components then split along that dependence.

**Cost:** the sum of the blocks' own costs a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import validate_parameter_constraints
from sklearn.utils.validation import validate_data
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures.categorical import CategoricalMixture
from mixwell.density.mixtures.em.loop import Family, Params, Tally
from mixwell.density.mixtures.em.rows import ArrayRows, Piece, Rows, _patterns
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.poisson import PoissonMixture

COLUMN_KINDS = ("numeric", "count", "category")
UNSORTED = ("covariances", "cholesky")  # parameters without an axis of components where covariances are tied
INIT_ROWS = 20_000  # rows that a start is computed from


@dataclass(frozen=True, eq=False)
class Block:
    """Columns of one kind and the estimator for them."""

    kind: str  # numeric, count, category
    estimator: Any  # unfitted; its n_components does not count
    columns: tuple[int, ...]
    floor_D: tuple[float, ...] = ()  # numeric: least variance of a component by column
    sizes: tuple[int, ...] = ()  # category: number of categories by column; codes count from 0


class BlockRows(ArrayRows):
    """Rows grouped by what their numeric columns lack; the other kinds take a missing value as it comes."""

    def __init__(self, x_ND: np.ndarray, numeric: Sequence[int]) -> None:
        super().__init__(x_ND)
        self._groups = _patterns(torch.from_numpy(x_ND[:, list(numeric)]))


class Part:
    """Sufficient statistics of one block, with the arithmetic of a tensor field by field."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __add__(self, other: Part) -> Part:
        return Part(type(self.value)(*(a + b for a, b in zip(self.value, other.value))))

    def __rmul__(self, factor: float) -> Part:
        return Part(type(self.value)(*(factor * a for a in self.value)))

    def __truediv__(self, divisor: Tensor) -> Part:
        return Part(type(self.value)(*(a / divisor for a in self.value)))


class Sums(tuple):
    """Sufficient statistics of all blocks."""

    def __new__(cls, *parts: Part) -> Sums:
        return super().__new__(cls, parts)

    def __getnewargs__(self) -> tuple[Part, ...]:  # for copies and pickles
        return tuple(self)


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

    def online_level(self) -> Any:
        return None if self.numeric is None else self.families[self.numeric].online_level()

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
            observed = piece.observed_PD if block.kind == "numeric" else None
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


@dataclass(frozen=True)
class Config:
    """Options of the mixture over blocks of columns."""

    n_components: int = 1  # K
    _: KW_ONLY
    blocks: Sequence[Block] = ()  # which name every column once; none: all columns are one Gaussian block
    tol: float = 1e-4  # as `GaussianMixture`'s, like all that follow
    max_iter: int = 300
    n_init: int = 1
    random_state: Any = None
    warm_start: bool = False
    batch_size: int | None = None
    learning_decay: float = 0.7
    learning_offset: float = 10.0


@method(title="Mixture over columns of different kinds", year=1999,
        tags={"estimator", "mixture", "missing", "online", "mixed"})
class ProductMixture(MixtureEstimator, config=Config):
    """Mixture over blocks of columns, which may be numbers, counts and categories at once.

    blocks: `Block(kind, estimator, columns, ...)`; options in `Config`.
    """

    _allow_nan = True
    _distributable = False


    init_params, init_size, verbose, verbose_interval, fixed = "kmeans", INIT_ROWS, 0, 10, None

    def _validate_params(self) -> None:
        constraints = {name: self._parameter_constraints[name] for name in self.get_params() if name != "blocks"}
        validate_parameter_constraints(constraints, self.get_params(deep=False) | {"blocks": None},
                                       caller_name=type(self).__name__)

    def _open(self, X: Any, *, reset: bool) -> Rows:
        x_ND = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset,
                             ensure_min_samples=2 if reset else 1)
        return BlockRows(x_ND, [c for block in self._layout() if block.kind == "numeric" for c in block.columns])

    def _layout(self) -> Sequence[Block]:
        """The blocks; one Gaussian block where none were given."""
        if len(self.blocks) == 0:
            return [Block("numeric", GaussianMixture(), tuple(range(self.n_features_in_)))]
        named = sorted(c for block in self.blocks for c in block.columns)
        if named != list(range(self.n_features_in_)):
            raise ValueError(f"the blocks name the columns {named}; expected each of 0 to {self.n_features_in_ - 1} "
                             "once.")
        for block in self.blocks:
            if block.kind not in COLUMN_KINDS or (block.kind == "category" and len(block.sizes) != len(block.columns)):
                raise ValueError(f"a block of kind {block.kind!r} with {len(block.sizes)} sizes for "
                                 f"{len(block.columns)} columns; expected {', '.join(COLUMN_KINDS)}, and the number of "
                                 "categories of every column of categories.")
        return self.blocks

    def _check_input(self, rows: Rows) -> None:
        x_ND = next(rows.chunks())[1]
        for block in self._layout():
            sizes = block.sizes if block.kind == "category" else [torch.inf] * len(block.columns)
            for column, size in zip(block.columns, sizes) if block.kind != "numeric" else ():
                x_N = x_ND[:, column]
                bad_N = (x_N < 0) | (x_N >= size) | (x_N != x_N.round()) & ~x_N.isnan()
                if bool(bad_N.any()):
                    row = int(bad_N.nonzero()[0, 0])
                    raise ValueError(f"row {row}, column {column} is {float(x_N[row]):g}; expected "
                                     f"{'a count' if size == torch.inf else f'a code from 0 to {size - 1}'}.")

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        blocks = [Block(b.kind, clone(b.estimator).set_params(n_components=self.n_components), b.columns, b.floor_D,
                        b.sizes) for b in self._layout()]
        x_ND = next(rows.chunks())[1]
        return Product(blocks, [_family_of(block, x_ND[:, list(block.columns)], weights_N) for block in blocks])

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        family = Product(self.blocks_, [block.estimator._scoring(dtype, device)[0] for block in self.blocks_])
        return family, self._warm(family)

    def _warm(self, family: Product) -> Params:  # type: ignore[override]
        found = [block.estimator._warm(own) for block, own in zip(self.blocks_, family.families)]
        params = {f"{i}.{name}": v for i, own in enumerate(found) for name, v in own.items() if name != "weights"}
        return {"weights": found[0]["weights"], **params}

    def _publish(self, family: Product, params: Params, like: Any) -> None:  # type: ignore[override]
        self.blocks_ = list(family.blocks)
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
        for block in self._layout():
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


def _family_of(block: Block, x_ND: Tensor, weights_N: Tensor | None) -> Any:
    mark_fitted(block)
    family: Any = block.estimator._build_family(ArrayRows(x_ND.contiguous()), weights_N)
    if block.floor_D:
        floor_D = torch.tensor(block.floor_D, dtype=torch.float64) * family.frame.scale_D**2
        family.regularisation_D = torch.maximum(family.regularisation_D, floor_D)
    return family


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups seen in a number, a count and a category."""
    group_N = torch.arange(120) % 2
    x_N3 = torch.stack([5.0 * group_N + torch.randn(120, generator=generator),
                        torch.poisson(2.0 + 10.0 * group_N, generator=generator),
                        (torch.rand(120, generator=generator) < 0.2 + 0.6 * group_N).float()], 1)
    blocks = [Block("numeric", GaussianMixture(), (0,)), Block("count", PoissonMixture(), (1,)),
              Block("category", CategoricalMixture(alpha=0.5), (2,), (), (2,))]
    return {"estimator": ProductMixture(2, blocks=blocks, random_state=0), "X": x_N3.double().numpy()}
