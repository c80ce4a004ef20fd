"""Mixture over columns of different kinds: blocks that are independent within a component share its weight.

**Equation:** p(x) = sum_k w_k prod_b p_bk(x_b), with b a Gaussian or Student-t block, a block of categories, of counts,
or of any other mixture of the family. E step: r_nk = w_k prod_b p_bk(x_nb) / p(x_n). M step: each block's own, with the
shared r.

**Shapes:** X (N, D) numbers, categories as codes from 0, NaN where a value is missing; `weights_` (K,), largest first;
`blocks_`, whose estimators carry the attributes of their kind. B rows of a piece, S starts.

**Reference:** Hunt, Jorgensen (1999), Mixture Model Clustering using the MULTIMIX Program; local independence between
blocks as in latent class analysis.

**Differs:** written from the equation; the paper's location model (means that depend on a category) is not there.

**Fails when:** blocks depend on each other within a group: components then split along that dependence.

**Cost:** the sum of the blocks' own costs a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain
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
from mixwell.density.mixtures.em.exported import Graph
from mixwell.density.mixtures.em.joined import joined
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.product import Product
from mixwell.density.mixtures.em.rows import ArrayRows, BlockRows, Rows
from mixwell.density.mixtures.em.variational import Variational
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.poisson import PoissonMixture

COLUMN_KINDS = ("numeric", "count", "category", "other")
UNSORTED = ("covariances", "cholesky")  # parameters without an axis of components where covariances are tied
SHARED = ("orientation",)  # and everywhere
INIT_ROWS = 20_000  # rows that a start is computed from


@dataclass(frozen=True, eq=False)
class Block:
    """Columns of one kind and the estimator for them."""

    kind: str  # numeric: a mixture with means and covariances; count, category; other: what the estimator takes
    estimator: Any  # unfitted; its n_components does not count
    columns: tuple[int, ...]
    floor_D: tuple[float, ...] = ()  # numeric: least variance of a component by column
    sizes: tuple[int, ...] = ()  # category: number of categories by column; codes count from 0


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

    # no options here, but what the shared fit reads of every mixture; the blocks' estimators keep options of their own
    init_params, init_size, verbose, verbose_interval, fixed = "kmeans", INIT_ROWS, 0, 10, None

    @property
    def _averages(self) -> bool:  # type: ignore[override]
        """Whether every block's sums mean the same at other parameters."""
        return all(block.estimator._averages for block in self.blocks)

    def _validate_params(self) -> None:
        values = self.get_params(deep=False) | {"blocks": None}
        constraints = {name: self._parameter_constraints[name] for name in values if name != "blocks"}
        validate_parameter_constraints(constraints, values, caller_name=type(self).__name__)

    def _open(self, X: Any, *, reset: bool) -> Rows:
        least = 2 if reset else 1
        x_ND = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset,
                             ensure_min_samples=least)
        for block in self._layout():
            columns = list(block.columns)
            own_ND = torch.from_numpy(x_ND[:, columns])
            seen_ND = block.estimator._seen(own_ND)
            if seen_ND is not own_ND:
                x_ND = x_ND.copy()
                x_ND[:, columns] = seen_ND.numpy()
        numeric = [block.columns for block in self._layout() if block.kind == "numeric"]
        return BlockRows(x_ND, list(chain.from_iterable(numeric)))

    def _layout(self) -> Sequence[Block]:
        """The blocks; one Gaussian block where none were given."""
        D = self.n_features_in_
        if len(self.blocks) == 0:
            return [Block("numeric", GaussianMixture(), tuple(range(D)))]
        named = sorted(chain.from_iterable(block.columns for block in self.blocks))
        if named != list(range(D)):
            raise ValueError(f"the blocks name the columns {named}; expected each of 0 to {D - 1} once.")
        for block in self.blocks:
            _check_block(block)
        return self.blocks

    def _check_input(self, rows: Rows) -> None:
        _, x_ND = next(rows.chunks())
        for block in self._layout():
            if block.kind == "category":
                for column, size in zip(block.columns, block.sizes):
                    _check_whole(x_ND, column, size, f"a code from 0 to {size - 1}")
            elif block.kind == "count":
                for column in block.columns:
                    _check_whole(x_ND, column, math.inf, "a count")
            else:
                own_ND = x_ND[:, list(block.columns)]
                own = ArrayRows(own_ND.contiguous(), names=block.columns)  # type: ignore[arg-type]
                block.estimator._check_input(own)

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        _, x_ND = next(rows.chunks())
        blocks, families = [], []
        for given in self._layout():
            estimator = clone(given.estimator).set_params(n_components=self.n_components)
            block = replace(given, estimator=estimator)
            own_ND = x_ND[:, list(block.columns)]
            blocks.append(block)
            families.append(_family_of(block, own_ND, weights_N))
        return Product(blocks, families)

    def _check_start(self, rows: Rows) -> None:
        _, x_ND = next(rows.chunks())
        for block in self._layout():
            own_ND = x_ND[:, list(block.columns)]
            estimator = clone(block.estimator).set_params(n_components=self.n_components)
            estimator._check_start(ArrayRows(own_ND.contiguous()))

    def _refine_start(self, family: Product, params: Params) -> Params:  # type: ignore[override]
        """Starting values that blocks were given; the weights are those of all blocks together."""
        found: Params = {"weights": params["weights"]}
        for i, block in enumerate(family.blocks):
            own = family.part(params, i)
            assert own is not None
            refined = block.estimator._refine_start(family.families[i], own)
            if i == 0:
                found["weights"] = refined["weights"]
            found |= {f"{i}.{name}": value for name, value in refined.items() if name != "weights"}
        return found

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        found = [block.estimator._scoring(dtype, device) for block in self.blocks_]
        families = [family for family, _ in found]
        product = Product(self.blocks_, families)
        return product, self._warm(product)

    def _warm(self, family: Product) -> Params:  # type: ignore[override]
        params: Params = {}
        for i, block in enumerate(self.blocks_):
            own = block.estimator._warm(family.families[i])
            weights = own.pop("weights")
            if i == 0:
                params["weights"] = weights
            params |= {f"{i}.{name}": value for name, value in own.items()}
        return params

    _by_size = True  # whether components are named by their size

    def _order(self, weights_K: Tensor) -> Tensor:
        if not self._by_size:
            return super()._order(weights_K)
        return weights_K.argsort(descending=True, stable=True)

    def _publish(self, family: Product, params: Params, like: Any) -> None:  # type: ignore[override]
        self.blocks_ = list(family.blocks)
        order = self._order(params["weights"])
        weights_K = params["weights"][order]
        self.weights_ = weights_K.numpy()
        for i, block in enumerate(self.blocks_):
            own = _ordered(family.part(params, i) or {}, order, block)
            own["weights"] = weights_K
            mark_fitted(block)
            block.estimator._publish(family.families[i], own, like)

    def _log_joint_graph(self, graph: Graph) -> str:
        return joined(graph, self.blocks_, self.weights_)

    def _n_parameters(self) -> int:
        shared = (len(self.blocks_) - 1) * (len(self.weights_) - 1)
        own = [block.estimator._n_parameters() for block in self.blocks_]
        return sum(own) - shared

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        N = int(counts_K.sum())
        x_ND = np.empty((N, self.n_features_in_))
        for block in self.blocks_:
            columns = list(block.columns)
            x_ND[:, columns] = block.estimator._draw(rng, counts_K)
        return x_ND

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        parts = []
        for block in self._layout():
            own_ND = np.nan_to_num(x_ND[:, list(block.columns)])
            if block.kind == "category":
                parts += [_one_hot(x_N, size) for x_N, size in zip(own_ND.T, block.sizes)]
                continue
            own_ND = block.estimator._start_points(own_ND)
            spread_D = np.maximum(own_ND.std(0), 1e-12)
            parts.append(own_ND / spread_D)
        return np.hstack(parts)


def _one_hot(x_N: np.ndarray, size: int) -> np.ndarray:
    """A column of codes as (N, size), whatever lies outside them as the nearest one."""
    whole_N = np.round(x_N).astype(int)
    code_N = np.clip(whole_N, 0, size - 1)
    return np.eye(size)[code_N]


def _check_block(block: Block) -> None:
    """Refuse a kind that is none, or sizes that fit no columns of categories."""
    known = block.kind in COLUMN_KINDS
    fits = block.kind != "category" or len(block.sizes) == len(block.columns)
    if not known or not fits:
        raise ValueError(f"a block of kind {block.kind!r} with {len(block.sizes)} sizes for "
                         f"{len(block.columns)} columns; expected {', '.join(COLUMN_KINDS)}, and the number of "
                         "categories of every column of categories.")


def _check_whole(x_ND: Tensor, column: int, size: float, expected: str) -> None:
    """Refuse numbers of a column that are not whole, or not from 0 to below `size`."""
    x_N = x_ND[:, column]
    outside_N = (x_N < 0) | (x_N >= size)
    broken_N = (x_N != x_N.round()) & ~x_N.isnan()
    bad_N = outside_N | broken_N
    if bool(bad_N.any()):
        row = int(bad_N.nonzero()[0, 0])
        raise ValueError(f"row {row}, column {column} is {float(x_N[row]):g}; expected {expected}.")


def _ordered(params: Params, order: Tensor, block: Block) -> Params:
    """A block's parameters with its components in another order."""
    tied = getattr(block.estimator, "_layout", "") == "tied"
    whole = UNSORTED + SHARED if tied else SHARED
    return {name: value if name in whole else value[order] for name, value in params.items()}


def mark_fitted(block: Block) -> None:
    """What an estimator notes of its rows when it is fitted alone."""
    estimator = block.estimator
    estimator.n_features_in_ = len(block.columns)
    estimator._dtype = torch.float64
    estimator._device = torch.device("cpu")
    if block.kind == "category":
        estimator._text = False
        estimator.categories_ = [np.arange(float(size)) for size in block.sizes]


def _family_of(block: Block, x_ND: Tensor, weights_N: Tensor | None) -> Any:
    """The family of a block's components for its columns."""
    mark_fitted(block)
    rows = ArrayRows(x_ND.contiguous())
    family: Any = block.estimator._build_family(rows, weights_N)
    if isinstance(family, Variational):
        raise ValueError(f"a block's estimator is {type(block.estimator).__name__}, whose posteriors are no "
                         "likelihood's; expected a mixture without priors, such as GaussianMixture().")
    if block.floor_D:
        floor_D = torch.tensor(block.floor_D, dtype=torch.float64)
        scaled_D = floor_D * family.frame.scale_D**2
        family.regularisation_D = torch.maximum(family.regularisation_D, scaled_D)
    return family


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups seen in a number, a count and a category."""
    group_N = torch.arange(120) % 2
    number_N = 5.0 * group_N + torch.randn(120, generator=generator)
    count_N = torch.poisson(2.0 + 10.0 * group_N, generator=generator)
    likely_N = 0.2 + 0.6 * group_N
    category_N = (torch.rand(120, generator=generator) < likely_N).float()
    x_N3 = torch.stack([number_N, count_N, category_N], 1)
    numbers = Block("numeric", GaussianMixture(), (0,))
    counts = Block("count", PoissonMixture(), (1,))
    categories = Block("category", CategoricalMixture(alpha=0.5), (2,), sizes=(2,))
    estimator = ProductMixture(2, blocks=[numbers, counts, categories], random_state=0)
    return {"estimator": estimator, "X": x_N3.double().numpy()}
