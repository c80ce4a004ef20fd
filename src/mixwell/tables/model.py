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
from mixwell.core.files import digest_file, read_json
from mixwell.density.mixtures.product import Block, ProductMixture, mark_fitted
from mixwell.formats import sealed
from mixwell.formats.tensors import SINGLE, open_file, save_tensors
from mixwell.tables import check
from mixwell.tables import reading as tables
from mixwell.tables.candidates import DISCRETE, Candidate, Choice, blocks_of
from mixwell.tables.columns import Column, decode, encode, log_units, used
from mixwell.tables.kinds import COUNT, NUMERIC
from mixwell.tables.missing import Form

if TYPE_CHECKING:
    import pandas

FORMAT, FORMAT_VERSION = "mixwell-mixture", 3
AGAIN = "fit again"
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
    total: float  # rows that their weights stand for
    weights: str = ""  # what the weights are, and their column

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

    def encode(self, table: Any, *, unknown: str = "error", form: Form | None = None) -> np.ndarray:
        """Encoded rows (N, D) of any table that has the columns, read as the fitted one was in what it leaves open."""
        known = {column.name: column.reading for column in self.used}
        written = [column.name for column in self.used if column.written]
        source = tables.of(table, form=form, written=written, known=known)
        return encode(source, self.columns, unknown=unknown)

    def log_density(self, x_ND: np.ndarray) -> np.ndarray:
        """Log density of encoded rows (N,), in nats, in the data's own units."""
        encoded_N: np.ndarray = self.estimator.score_samples(x_ND)
        units_N = log_units(self.columns, x_ND)
        return encoded_N - units_N

    def predict(self, table: Any, *, unknown: str = "error", form: Form | None = None) -> pandas.DataFrame:
        """One row for each of the table's: row (from 1), component (from 1), a probability each, log_density.

        A missing column, an unknown category (unless `unknown="missing"`), text or an infinity where a number is
        expected raise `MixwellError` with column and row.
        """
        return self.label(self.encode(table, unknown=unknown, form=form))

    def label(self, x_ND: np.ndarray) -> pandas.DataFrame:
        """As `predict`, of encoded rows."""
        pandas = tables.require()
        resp_NK = self.estimator.predict_proba(x_ND)
        labels = {"row": np.arange(1, len(x_ND) + 1)}
        labels["component"] = resp_NK.argmax(1) + 1
        for k, resp_N in enumerate(resp_NK.T):
            labels[f"probability_{k + 1}"] = resp_N
        labels["log_density"] = self.log_density(x_ND)
        return pandas.DataFrame(labels)

    def sample(self, count: int, seed: int = 0) -> pandas.DataFrame:
        """Rows drawn from the mixture, in the data's own units, in random order."""
        pandas = tables.require()
        x_ND, _ = self.draw(count, seed)
        return pandas.DataFrame({c.name: decode(c, x_N) for c, x_N in zip(self.used, x_ND.T)})

    def draw(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Encoded rows (count, D) drawn from the mixture in random order, and their components (from 0)."""
        rng = np.random.RandomState(seed)
        weights_K = self.estimator.weights_
        counts_K = rng.multinomial(count, weights_K / weights_K.sum())
        order = rng.permutation(count)
        x_ND = self.estimator._draw(rng, counts_K)
        components = np.arange(len(counts_K))
        label_N = np.repeat(components, counts_K)
        return x_ND[order], label_N[order]

    def save(self, folder: str | Path) -> None:
        """Write `mixture.json` and `model.safetensors` into an existing folder."""
        arrays = {"weights_": torch.as_tensor(self.estimator.weights_)}
        for block in self.estimator.blocks_:
            for name in check.shapes_of(block, self.family, self.n_components):
                arrays[f"{block.kind}.{name}"] = torch.as_tensor(getattr(block.estimator, name))
        numbers = Path(folder) / SINGLE
        save_tensors(numbers, arrays, {"format": "pt", "holds": FORMAT})
        sealed.write(Path(folder) / FILE, {**self._record(), "numbers": digest_file(numbers)})

    def _record(self) -> dict[str, Any]:
        """The content of mixture.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "mixwell": __version__,
            "source": self.source,
            "rows": self.rows,
            "seed": self.seed,
            "total": self.total,
            "weights": self.weights,
            "family": self.family,
            "n_components": self.n_components,
            "columns": [asdict(column) for column in self.columns],
            "choice": plain(asdict(self.choice))}


def load(folder: str | Path) -> FittedMixture:
    """Read a model folder; raises `MixwellError` for another format or version, and missing or foreign numbers."""
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
    record = sealed.read(folder / FILE, AGAIN)
    try:
        n_components = check.whole_number(record, "n_components", 1)
        columns = check.columns_of(record["columns"])
        choice = check.choice_of(record["choice"], n_components)
        check.expect(isinstance(record["source"], str), "'source' is no text")
        rows = check.whole_number(record, "rows", 1)
        seed = check.whole_number(record, "seed", 0)
        total = check.positive(record, "total")
        check.expect(isinstance(record["weights"], str), "'weights' is no text")
        family = choice.best.family
        numeric = any(column.kind == NUMERIC for column in columns)
        counted = any(column.kind == COUNT for column in columns)
        check.expect(numeric != (family == DISCRETE), f"family {family!r} is not for these columns")
        check.expect(counted == bool(choice.best.counts), f"counts {choice.best.counts!r} are not for these columns")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / FILE, error) from error
    tensors = open_file(folder / SINGLE)
    if digest_file(folder / SINGLE) != record.get("numbers"):
        raise MixwellError(f"{folder / SINGLE} is damaged (it is not as it was written); {AGAIN}.")
    try:
        held = {name: tensor.numpy() for name, tensor in tensors.items()}
        estimator = _estimator(held, columns, choice.best, n_components)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / SINGLE, error) from error
    return FittedMixture(columns=columns, estimator=estimator, choice=choice, source=record["source"], rows=rows,
                         seed=seed, total=total, weights=record["weights"])


def _damaged(path: Path, error: Exception) -> MixwellError:
    lacks = isinstance(error, KeyError)
    problem = f"it lacks {error}" if lacks else error
    return MixwellError(f"{path} is damaged ({problem}); {AGAIN}.")


def _estimator(held: Mapping[str, np.ndarray], columns: Sequence[Column], chosen: Candidate,
               n_components: int) -> ProductMixture:
    family = chosen.family
    blocks = blocks_of(columns, family, chosen.counts)
    model = ProductMixture(n_components, blocks=blocks)
    model.n_features_in_, model.blocks_ = len(used(columns)), blocks
    model.weights_ = check.shaped("weights_", held["weights_"], (n_components,))
    check.shares("weights_", model.weights_)
    names = {"weights_"}
    for block in blocks:
        own = {}
        for name, shape in check.shapes_of(block, family, n_components).items():
            key = f"{block.kind}.{name}"
            own[name] = check.shaped(key, held[key], shape)
            names.add(key)
        check.ranges(block, family, own)
        own["weights_"] = model.weights_
        _fill(block, own, n_components)
    foreign = sorted(set(held) - names)
    if foreign:
        raise ValueError(f"it holds {foreign[0]!r}, for which {FILE} has no columns")
    return model


def _fill(block: Block, arrays: Mapping[str, np.ndarray], n_components: int) -> None:
    """Make the block's estimator one that was fitted to these numbers."""
    block.estimator.set_params(n_components=n_components)
    mark_fitted(block)
    for name, array in arrays.items():
        setattr(block.estimator, name, array)
    if block.sizes:
        block.estimator.probabilities_ = check.by_column(arrays["_flat_probabilities"], block)


def plain(value: Any) -> Any:
    """What JSON knows: no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

