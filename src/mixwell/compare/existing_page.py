"""What `evaluate` found, in words and tables, and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixwell.compare import paired
from mixwell.compare.measured import RECORD, Measured
from mixwell.compare.paired import Sums
from mixwell.compare.results import METRIC
from mixwell.compare.view import p_text, signed, verdict
from mixwell.core import units
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import write_text
from mixwell.formats import sealed
from mixwell.report.page import facts, machine, render
from mixwell.report.statistics import LEVEL, Difference
from mixwell.report.words import listed

TITLES = {"table": "Result", "domains": "By domain", "cost": "Size and speed", "machine": "Machine and versions"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record as it was read, with what follows from it."""

    record: Mapping[str, Any]
    models: tuple[Measured, ...]  # the first is what the others are held against

    @property
    def baseline(self) -> str:
        """Name of the first model."""
        return self.models[0].name

    @cached_property
    def sizes(self) -> Sums:
        """UTF-8 bytes of each document by domain."""
        given = self.record["text"]["bytes"]
        return {name: np.array(sizes, dtype=float) for name, sizes in given.items()}

    @cached_property
    def bits(self) -> dict[str, Sums]:
        """Bits that each model needs for each document, by domain."""
        return {model.name: _arrays(model.bits) for model in self.models}

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Each model less the first."""
        return paired.differences(self.bits, self.baseline, self.sizes)

    @property
    def documents(self) -> int:
        """How many were read."""
        return sum(map(len, self.sizes.values()))

    @property
    def one_tokenizer(self) -> bool:
        """Whether all models read the same tokens."""
        return len({model.tokenizer for model in self.models}) == 1


def _arrays(bits: Mapping[str, Sequence[float]]) -> Sums:
    found = {}
    for name, own in bits.items():
        found[name] = np.array(own, dtype=float)
    return found


def read(folder: str | Path) -> Found:
    """Read a folder of `evaluate`; one without a record that can be read raises `MixwellError`."""
    path = Path(folder) / RECORD
    record = sealed.read(path, "run it again")
    try:
        models = [from_dict(Measured, one, str(path)) for one in record["models"]]
        sizes = record["text"]["bytes"]
        whole = all(len(model.bits[name]) == len(own) for model in models for name, own in sizes.items())
    except (KeyError, TypeError) as error:
        raise MixwellError(f"{path} is no record of an evaluation; run it again.") from error
    if not models or not whole:
        raise MixwellError(f"{path} does not hold as many documents for each model as were read; run it again.")
    return Found(record=record, models=tuple(models))


def build(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of an evaluation anew, by default to its `report.html`; returns its path."""
    path = out or Path(folder) / "report.html"
    page = render("evaluate.html", **contents(read(folder)))
    return write_text(path, page)


def contents(found: Found) -> dict[str, Any]:
    """Everything the template shows."""
    record = found.record
    times = {"wall time": record["wall_seconds"]}
    sections: dict[str, Any] = {
        "table": table(found),
        "domains": domains(found),
        "cost": cost(found),
        "machine": machine(record["machine"], record["versions"], "", record["started"], times)}
    return {
        "title": listed([model.name for model in found.models]),
        "facts": facts(record["machine"], record["started"]),
        "lead": lead(found),
        "notes": notes(found),
        "p_label": p_label(found),
        "baseline": found.baseline,
        "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
        **sections}


def lead(found: Found) -> str:
    """The answer in a sentence or two."""
    source = found.record["text"]["source"]
    if len(found.models) == 1:
        own = paired.level(found.bits[found.baseline], found.sizes).interval
        return f"{found.baseline}: {units.fixed(own.mean, 4)} {METRIC} of {source}."
    sentences = [_sentence(name, difference, found.baseline) for name, difference in found.differences.items()]
    return " ".join(sentences)


def _sentence(name: str, difference: Difference, baseline: str) -> str:
    own = difference.interval
    if math.isnan(own.half):
        return f"One document cannot tell {name} from {baseline}: {signed(own.mean)} {METRIC}."
    reach = f"{signed(own.low)} to {signed(own.high)}"
    if not difference.supported:
        return f"No difference between {name} and {baseline} is supported ({reach} {METRIC})."
    word = "better" if own.mean < 0 else "worse"
    gap = units.fixed(abs(own.mean), 4)
    return f"{name} is {word} than {baseline} by {gap} {METRIC} ({reach})."


def table(found: Found) -> list[dict[str, Any]]:
    """A row for each model, in the order given."""
    return [_row(found, model) for model in found.models]


def _row(found: Found, model: Measured) -> dict[str, Any]:
    own = paired.level(found.bits[model.name], found.sizes).interval
    row: dict[str, Any] = dict.fromkeys(("half", "gap", "range", "p", "state", "aside"), "")
    row |= {"name": model.name, "mean": units.fixed(own.mean, 4), "verdict": ""}
    if math.isfinite(own.half):
        row["half"] = f"± {units.fixed(own.half, 4)}"
    difference = found.differences.get(model.name)
    if difference is None:
        return row
    gap = difference.interval
    row["gap"] = signed(gap.mean)
    if math.isfinite(gap.half):
        row["range"] = f"{signed(gap.low)} to {signed(gap.high)}"
        row["p"] = p_text(difference.p_holm)
        return row | verdict(difference)
    return row | {"verdict": "one document"}


def p_label(found: Found) -> str:
    """Heading of the column of p-values."""
    return "p, Holm" if len(found.differences) > 1 else "p"


def domains(found: Found) -> dict[str, Any]:
    """Bits per byte by domain; empty for one domain."""
    names = list(found.sizes)
    if len(names) < 2:
        return {}
    rows = []
    for model in found.models:
        own = found.bits[model.name]
        scores = [own[name].sum() / found.sizes[name].sum() for name in names]
        rows.append((model.name, [units.fixed(float(score), 4) for score in scores]))
    return {"head": names, "rows": rows}


def cost(found: Found) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each model with its sizes and its speed, as (figure, small print)."""
    return [(model.name, _cost(model)) for model in found.models]


def _cost(model: Measured) -> list[tuple[str, str]]:
    rate = model.tokens / model.seconds if model.seconds else math.nan
    return [
        (units.si(model.parameters), f"{units.si(model.active_parameters)} active"),
        (units.si(model.weights_bytes, "B"), f"{units.si(model.active_bytes, 'B')} active, in {model.dtype}"),
        (units.si(model.tokens), units.seconds(model.seconds)),
        (units.si(rate), "")]


def notes(found: Found) -> list[str]:
    """How it was measured, in short sentences; what was lost or left out comes first."""
    record = found.record
    text, reading = record["text"], record["reading"]
    size = sum(float(own.sum()) for own in found.sizes.values())
    read_text = f"{units.si(size, 'B')} in {found.documents} {_parts(text)} of {text['source']}"
    sentences = [_lost(found, model) for model in found.models]
    sentences += text["notices"]
    sentences.append(f"Read: {read_text}; a token sees at most the {reading['seq_len']} before it. "
                     "Nobody checked that the models were not trained on it.")
    if len(found.models) > 1:
        sentences.append("Differences are paired by document; intervals are 95 % intervals of the ratio of all bits to "
                         f"all bytes. A difference is called supported where p is below {LEVEL}.")
    if not found.one_tokenizer:
        sentences.append("The models have different tokenizers; bits per byte are on one scale all the same, tokens a "
                         "second are not.")
    return [sentence for sentence in sentences if sentence]


def _parts(text: Mapping[str, Any]) -> str:
    return "documents or pieces of them" if text["pieces"] else "documents"


def _lost(found: Found, model: Measured) -> str:
    lost = sum(model.lost.values())
    if not lost:
        return ""
    return (f"{model.name}: its tokenizer does not give back {lost} of {found.documents} documents as they were "
            "(unknown or normalised signs), which makes its bits per byte look too low.")
