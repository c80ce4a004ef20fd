"""A fitted mixture with the columns it was fitted on: labels for new rows, draws, and a folder to keep it in.

The folder holds `mixture.json` (what it is) and `model.safetensors` (its numbers); nothing in it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from mixwell.tables import check
from mixwell.tables import reading as tables
from mixwell.tables.columns import NUMERIC, Column, decode, encode, used
from mixwell.tables.search import DISCRETE, Choice, blocks_of

if TYPE_CHECKING:
    import pandas

FORMAT, FORMAT_VERSION = "mixwell-mixture", 1
FILE = "mixture.json"


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
            for name in check.shapes_of(block, self.family, self.n_components):
                arrays[f"{block.kind}.{name}"] = torch.as_tensor(getattr(block.estimator, name))
        save_tensors(Path(folder) / SINGLE, arrays, {"format": "pt", "holds": FORMAT})
        write_json(Path(folder) / FILE, {
            "format": FORMAT, "format_version": FORMAT_VERSION, "mixwell": __version__, "source": self.source,
            "rows": self.rows, "seed": self.seed, "family": self.family, "n_components": self.n_components,
            "columns": [asdict(c) for c in self.columns], "choice": _plain(asdict(self.choice))})


def load(folder: str | Path) -> FittedMixture:
    """Read a model folder. One of another format or version, or with missing or foreign numbers, raises."""
    folder = Path(folder)
    with tables.readable(folder):
        return _load(folder)


def _load(folder: Path) -> FittedMixture:
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
        n_components = check.whole_number(record, "n_components", 1)
        columns = check.columns_of(record["columns"])
        choice = check.choice_of(record["choice"], n_components)
        check.expect(isinstance(record["source"], str), "'source' is no text")
        rows, seed = check.whole_number(record, "rows", 1), check.whole_number(record, "seed", 0)
        family = choice.best.family
        check.expect((family == DISCRETE) != any(c.kind == NUMERIC for c in columns), f"family {family!r} is not for "
                                                                                       "these columns")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / FILE, error) from error
    tensors = open_file(folder / SINGLE)
    try:
        held = {name: tensor.numpy() for name, tensor in tensors.items()}
        estimator = _estimator(held, columns, family, n_components)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / SINGLE, error) from error
    return FittedMixture(columns=columns, estimator=estimator, choice=choice, source=record["source"], rows=rows,
                         seed=seed)


def _damaged(path: Path, error: Exception) -> MixwellError:
    lacking = isinstance(error, KeyError)
    return MixwellError(f"{path} is damaged ({f'it lacks {error}' if lacking else error}); fit again.")


def _estimator(held: Mapping[str, np.ndarray], columns: Sequence[Column], family: str,
               n_components: int) -> ProductMixture:
    blocks = blocks_of(columns, family)
    model = ProductMixture(n_components, blocks=blocks)
    model.n_features_in_, model.blocks_ = len(used(columns)), blocks
    model.weights_ = check.shaped("weights_", held["weights_"], (n_components,))
    check.shares("weights_", model.weights_)
    names = {"weights_"}
    for block in blocks:
        shapes = check.shapes_of(block, family, n_components)
        own = {name: check.shaped(f"{block.kind}.{name}", held[f"{block.kind}.{name}"], shape)
               for name, shape in shapes.items()}
        check.ranges(block, family, own)
        names |= {f"{block.kind}.{name}" for name in own}
        block.estimator.set_params(n_components=n_components)
        mark_fitted(block)
        for name, array in {**own, "weights_": model.weights_}.items():
            setattr(block.estimator, name, array)
        if block.sizes:
            block.estimator.probabilities_ = np.split(block.estimator._flat_probabilities,
                                                      np.cumsum(block.sizes)[:-1], axis=1)
    if foreign := sorted(set(held) - names):
        raise ValueError(f"it holds {foreign[0]!r}, for which {FILE} has no columns")
    return model


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

