"""A fitted mixture with the columns it was fitted on: labels for new rows, draws, and a folder to keep it in.

The folder holds `mixture.json` (what it is) and `model.safetensors` (its numbers); nothing in it is executed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixwell import __version__
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, write_json
from mixwell.core.tensors import SINGLE, open_file, save_tensors
from mixwell.density.mixtures.product import ProductMixture, mark_fitted
from mixwell.lab import tables
from mixwell.lab.fit.columns import NUMERIC, Column, decode, encode, used
from mixwell.lab.fit.search import DISCRETE, FAMILIES, Candidate, Choice, blocks_of

if TYPE_CHECKING:
    import pandas

FORMAT, FORMAT_VERSION = "mixwell-mixture", 1
FILE = "mixture.json"
ATTRIBUTES = {"GaussianMixture": ("means_", "covariances_", "precisions_cholesky_", "precisions_"),
              "StudentTMixture": ("means_", "covariances_", "precisions_cholesky_", "precisions_", "dofs_"),
              "PoissonMixture": ("rates_",), "CategoricalMixture": ("_flat_probabilities",)}


@dataclass(frozen=True, eq=False)
class FittedMixture:
    """A mixture fitted to a table: `columns` say how each is read, `estimator` works on encoded rows."""

    columns: tuple[Column, ...]
    estimator: ProductMixture
    choice: Choice
    source: str  # the table's name
    rows: int
    seed: int

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.estimator.weights_)

    @property
    def family(self) -> str:
        """Name of the family of the numeric block."""
        return self.choice.best.family

    @property
    def used(self) -> list[Column]:
        """The columns that take part, in the order of the encoded rows."""
        return used(self.columns)

    def encode(self, table: Any, *, unknown: str = "error") -> np.ndarray:
        """Encoded rows (N, D) of any table that has the columns."""
        return encode(tables.of(table), self.columns, unknown=unknown)

    def log_density(self, x_ND: np.ndarray) -> np.ndarray:
        """Log density of encoded rows (N,), in nats, in the data's own units."""
        scale_D = np.array([c.scale for c in self.used])
        return self.estimator.score_samples(x_ND) - (~np.isnan(x_ND)) @ np.log(scale_D)

    def predict(self, table: Any, *, unknown: str = "error") -> pandas.DataFrame:
        """One row for each of the table's: row (from 1), component (from 1), a probability each, log_density.

        A missing column, an unknown category (unless `unknown="missing"`), text or an infinity where a number is
        expected raise `MixwellError` with column and row.
        """
        return self.label(self.encode(table, unknown=unknown))

    def label(self, x_ND: np.ndarray) -> pandas.DataFrame:
        """As `predict`, of encoded rows."""
        pandas = tables.require()
        resp_NK = self.estimator.predict_proba(x_ND)
        return pandas.DataFrame({"row": np.arange(1, len(x_ND) + 1), "component": resp_NK.argmax(1) + 1,
                                 **{f"probability_{k + 1}": r_N for k, r_N in enumerate(resp_NK.T)},
                                 "log_density": self.log_density(x_ND)})

    def sample(self, count: int, seed: int = 0) -> pandas.DataFrame:
        """Rows drawn from the mixture, in the data's own units, in random order."""
        pandas = tables.require()
        x_ND, _ = self.draw(count, seed)
        return pandas.DataFrame({c.name: decode(c, x_N) for c, x_N in zip(self.used, x_ND.T)})

    def draw(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Encoded rows (count, D) drawn from the mixture in random order, and their components (from 0)."""
        rng = np.random.RandomState(seed)
        counts_K = rng.multinomial(count, self.estimator.weights_ / self.estimator.weights_.sum())
        order = rng.permutation(count)
        return self.estimator._draw(rng, counts_K)[order], np.repeat(np.arange(len(counts_K)), counts_K)[order]

    def save(self, folder: str | Path) -> None:
        """Write `mixture.json` and `model.safetensors` into an existing folder."""
        arrays = {"weights_": torch.as_tensor(self.estimator.weights_)}
        for block in self.estimator.blocks_:
            for name in ATTRIBUTES[type(block.estimator).__name__]:
                arrays[f"{block.kind}.{name}"] = torch.as_tensor(getattr(block.estimator, name))
        save_tensors(Path(folder) / SINGLE, arrays, {"format": "pt", "holds": FORMAT})
        write_json(Path(folder) / FILE, {
            "format": FORMAT, "format_version": FORMAT_VERSION, "mixwell": __version__, "source": self.source,
            "rows": self.rows, "seed": self.seed, "family": self.family, "n_components": self.n_components,
            "columns": [asdict(c) for c in self.columns], "choice": _plain(asdict(self.choice))})


def load(folder: str | Path) -> FittedMixture:
    """Read a model folder. One of another format or version, or with missing or foreign numbers, raises."""
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise MixwellError(f"{folder} holds no {FILE}; expected a folder that `mixwell fit` wrote.")
    record = read_json(folder / FILE)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise MixwellError(f"{folder / FILE} is no mixture; expected a folder that `mixwell fit` wrote.")
    if record.get("format_version") != FORMAT_VERSION:
        raise MixwellError(f"{folder} is of format version {record.get('format_version')}, written by mixwell "
                           f"{record.get('mixwell')}; this is mixwell {__version__}, which reads version "
                           f"{FORMAT_VERSION}. Fit again, or use that version.")
    try:
        columns = tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in record["columns"])
        choice = _choice(record["choice"])
        if choice.best.family not in (*FAMILIES, DISCRETE):
            raise ValueError(f"unknown family {choice.best.family!r}")
        estimator = _estimator(folder, columns, choice.best.family, int(record["n_components"]))
        return FittedMixture(columns=columns, estimator=estimator, choice=choice, source=str(record["source"]),
                             rows=int(record["rows"]), seed=int(record["seed"]))
    except MixwellError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MixwellError(f"{folder / FILE} is damaged ({type(error).__name__}: {error}); fit again.") from error


def _estimator(folder: Path, columns: tuple[Column, ...], family: str, n_components: int) -> ProductMixture:
    held = open_file(folder / SINGLE)
    blocks = blocks_of(columns, family)
    model = ProductMixture(n_components, blocks=blocks)
    model.n_features_in_, model.weights_ = len(used(columns)), _array(folder, held, "weights_", n_components)
    model.blocks_ = blocks
    names = {f"{b.kind}.{name}" for b in blocks for name in ATTRIBUTES[type(b.estimator).__name__]} | {"weights_"}
    if foreign := sorted(set(held) - names):
        raise MixwellError(f"{folder / SINGLE} holds {foreign[0]!r}, for which {FILE} has no columns; fit again.")
    for block in blocks:
        block.estimator.set_params(n_components=n_components)
        mark_fitted(block)
        for name in ATTRIBUTES[type(block.estimator).__name__]:
            shared = getattr(block.estimator, "covariance_type", "") == "tied" and name not in ("means_", "dofs_")
            first = len(block.columns) if shared else n_components
            setattr(block.estimator, name, _array(folder, held, f"{block.kind}.{name}", first))
        block.estimator.weights_ = model.weights_
        if block.sizes:
            block.estimator.probabilities_ = np.split(block.estimator._flat_probabilities,
                                                      np.cumsum(block.sizes)[:-1], axis=1)
        _check_width(folder, block)
    return model


def _array(folder: Path, held: Any, name: str, first: int) -> np.ndarray:
    if name not in held:
        raise MixwellError(f"{folder / SINGLE} lacks {name!r}; the folder is incomplete, fit again.")
    found = held[name].numpy()
    if found.ndim == 0 or len(found) != first or not np.isfinite(found).all():
        raise MixwellError(f"{folder / SINGLE}: {name!r} has the shape {found.shape} or numbers that are not finite; "
                           f"expected {first} finite entries. Fit again.")
    return found


def _check_width(folder: Path, block: Any) -> None:
    name = {NUMERIC: "means_", "count": "rates_", "category": "_flat_probabilities"}[block.kind]
    width = sum(block.sizes) if block.sizes else len(block.columns)
    found = getattr(block.estimator, name).shape
    if found[1:] != (width,):
        raise MixwellError(f"{folder / SINGLE}: {block.kind}.{name} has the shape {found}; {FILE} speaks of {width} "
                           "columns. Fit again.")


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _choice(record: dict[str, Any]) -> Choice:
    best, *others = (_candidate(c) for c in (record["best"], *record["candidates"]))
    return Choice(best=best, candidates=tuple(others), criterion=record["criterion"], planned=record["planned"],
                  notes=tuple(record["notes"]))


def _candidate(record: dict[str, Any]) -> Candidate:
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
    return Candidate(**values)
