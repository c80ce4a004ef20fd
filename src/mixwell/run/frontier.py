"""How small against how good: one model in many sizes, each weighed on text that its calibration did not see.

`frontier(["precision.expert_bits"], "runs/mine:moe", text="texts", out="sizes")`
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from torch import Tensor

from mixwell.core import files, machine, registry, units
from mixwell.core.checkpoint import Checkpoint, held
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.registry import Entry
from mixwell.core.rng import generator
from mixwell.formats.tensors import size_bytes
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.conversion import check_accounted, check_filled, convert
from mixwell.precision.bits import allotted
from mixwell.report import findings
from mixwell.report.plots import Series, line_chart
from mixwell.report.statistics import Interval, interval
from mixwell.report.targets import check_folder
from mixwell.run.apply import Given, source_of
from mixwell.run.searching import Half, halves, window_bits
from mixwell.run.stages.convert import read_other

REPORT, FIGURES = "frontier.html", "frontier.json"
METHODS = ("precision.integers", "precision.expert_bits")
BITS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
MEAN, SAME = "bits_per_weight", "bits"  # options that say how many bits: on average, of each
MB = 1e6
TITLES = {"curve": "Size against loss", "best": "Sizes that none beats", "all": "Every size",
          "machine": "Machine and versions"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """The model in one size."""

    method: str  # empty: as it came
    bits: float | None  # asked for; None of a method that has but one size
    bytes: int  # of all tensors
    bits_per_byte: float  # on the half of the text that nobody looked at
    gap: Interval  # the same less that of the model as it came, windows paired
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the method, as they were set
    best: bool = False  # whether none is both no larger and better

    def plain(self) -> dict[str, Any]:
        """Data for JSON."""
        found = dict(vars(self))
        found["bits_per_byte"] = _finite(self.bits_per_byte)
        ends = {"mean": self.gap.mean, "low": self.gap.low, "high": self.gap.high}
        found["gap"] = {name: _finite(value) for name, value in ends.items()}
        return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def frontier(methods: Sequence[str], model: Given, *, text: str | Path, bits: Sequence[float] = BITS,
             tokens: int = 4096, out: str | Path | None = None, seed: int = 0,
             options: Mapping[str, Any] | None = None,
             progress: Callable[[Point], None] | None = None) -> list[Point]:
    """Weigh a model in every size that the methods of `precision` make of it.

    Methods look at one half of `text` and sizes are weighed on the other, whole documents apart. bits: mean bits a
    weight for methods that choose, the same everywhere for others (whole numbers of them). tokens: of each half at
    most. options: further fields of the methods' configs, each for those that have it. out: folder for the report
    `frontier.html` and its figures. progress: called with each point. The first point is the model as it came.
    """
    entries = [_entry(name) for name in dict.fromkeys(methods)]
    given = _options(entries, options or {})
    _check_bits(entries, bits)
    if out is not None:
        check_folder(out)
    source = source_of(model, "the model")
    before = held(source.checkpoint)
    looked, weighed = halves(text, before.files, tokens, seed)
    scale = _Scale(before, weighed)
    points = [scale.point("", Made(None, {}, before))]
    calibration = TextCalibration(looked.tokens_BT, models=read_other)
    for entry, own in zip(entries, given):
        for made in sizes(entry, own, before, calibration, bits, seed):
            point = scale.point(entry.name, made)
            points.append(point)
            if progress is not None:
                progress(point)
    found = marked(points)
    if out is not None:
        _write(found, Path(out), source.name, str(text))
    return found


def _entry(name: str) -> Entry:
    entry = registry.find(name)
    if entry.room != "precision" or not hasattr(entry.module(), "promises"):
        raise MixwellError(f"{entry.name} makes no model smaller by bits; expected methods of `mixwell list "
                           "precision`.")
    return entry


def _options(entries: Sequence[Entry], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options that each method has. Raises `MixwellError` for one that none has, or that says the size."""
    fields = [_fields(entry) for entry in entries]
    known = set().union(*fields)
    for name in options:
        if name in (MEAN, SAME, "max_bytes"):
            raise MixwellError(f"{name} is what is varied; name its values with --bits.")
        if name not in known:
            raise MixwellError(f"no method here has an option {name}; `mixwell show {entries[0].name}` lists them.")
    return [_own(options, names) for names in fields]


def _check_bits(entries: Sequence[Entry], bits: Sequence[float]) -> None:
    """Raises `MixwellError` for what is no size, and for a method that none of `bits` is a size of."""
    for value in bits:
        if not 0 < value < math.inf:
            raise MixwellError(f"{value:g} bits is no size; expected numbers above 0 such as 2,3,4.")
    for entry in entries:
        if not _settings(_fields(entry), bits):
            raise MixwellError(f"{entry.name} has whole numbers of bits, and --bits names none; add one.")


def _fields(entry: Entry) -> set[str]:
    found = dataclasses.fields(entry.module().Config)
    return {field.name for field in found}


def _own(options: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    shared = [name for name in options if name in names]
    return {name: options[name] for name in shared}


class Made(NamedTuple):
    """The model in one size."""

    bits: float | None  # asked for
    options: Mapping[str, Any]  # of the method
    after: Checkpoint


def sizes(entry: Entry, options: Mapping[str, Any], before: Checkpoint, calibration: TextCalibration,
          bits: Sequence[float], seed: int) -> Iterator[Made]:
    """The model in the sizes that a method makes, one after the other.

    What the method measures is measured once for all of them where it says how, by `sensitivities`.
    """
    settings = _settings(_fields(entry), bits)
    harm = None
    for value, own in settings.items():
        asked = {**options, **own}
        config = from_dict(entry.module().Config, asked, entry.name)
        draws = generator(seed, entry.name)
        if not hasattr(entry.module(), "sensitivities"):
            yield Made(value, asked, convert(entry, before, config, draws, calibration))
            continue
        if harm is None:
            harm = entry.module().sensitivities(before, config, draws, calibration)
        settle = getattr(entry.module(), "settle", allotted)
        after = settle(before, harm, config)
        check_accounted(before, after, entry.name)
        check_filled(before, after, entry.name)
        yield Made(value, asked, after)


def _settings(names: set[str], bits: Sequence[float]) -> dict[float | None, dict[str, Any]]:
    """What says each size, by the bits asked for; none where the method has but one."""
    if MEAN in names:
        return {value: {MEAN: value} for value in bits}
    if SAME in names:
        whole = [value for value in bits if value == int(value)]
        return {value: {SAME: int(value)} for value in whole}
    return {None: {}}


class _Scale:
    """What every size is weighed on, and what the model as it came is there."""

    def __init__(self, before: Checkpoint, half: Half) -> None:
        self.half = half
        self.before_B = window_bits(before, half)
        if not bool(self.before_B.isfinite().all()):
            raise MixwellError("the model's loss on the text is not finite; there is nothing to compare with.")

    def point(self, method: str, made: Made) -> Point:
        """A size, weighed."""
        after_B = window_bits(made.after, self.half)
        mean_bytes = self.half.bytes / len(after_B)
        apart_B = (after_B - self.before_B) / mean_bytes
        per_byte = float(after_B.sum()) / self.half.bytes
        size = size_bytes(made.after.tensors)
        return Point(method=method, bits=made.bits, options=made.options, bytes=size, bits_per_byte=per_byte,
                     gap=_gap(apart_B))


def _gap(apart_B: Tensor) -> Interval:
    """The interval over windows; not a number where a size has no finite loss."""
    if bool(apart_B.isfinite().all()):
        return interval(apart_B.tolist())
    return Interval(math.nan, math.nan, len(apart_B))


def marked(points: Sequence[Point]) -> list[Point]:
    """The points, those marked that no other beats: none is as small and better, none smaller and as good."""
    found = []
    for point in points:
        beaten = any(_beats(other, point) for other in points)
        known = math.isfinite(point.bits_per_byte)
        found.append(dataclasses.replace(point, best=known and not beaten))
    return found


def _beats(one: Point, other: Point) -> bool:
    ours, theirs = _both(one), _both(other)
    pairs = zip(ours, theirs)
    return ours != theirs and all(own <= their for own, their in pairs)


def _both(point: Point) -> tuple[int, float]:
    return point.bytes, point.bits_per_byte


def _write(points: Sequence[Point], out: Path, model: str, text: str) -> None:
    with files.whole_folder(out) as scratch:
        about = {"model": model, "text": text, "points": [point.plain() for point in points],
                 "versions": machine.versions()}
        files.write_json(scratch / FIGURES, about)
        files.write_text(scratch / REPORT, page(out.name, points, model, text))


def page(name: str, points: Sequence[Point], model: str, text: str) -> str:
    """The report: the curve of every method, the points that none beats with the command of each, and all figures."""
    chosen = sorted((point for point in points if point.best), key=_both)
    made = [(title(point), command(point, model, text)) for point in chosen if point.method]
    sections = {
        "curve": _curve(points),
        "best": _rows(chosen),
        "made": made,
        "all": _rows(points),
        "model": model,
        "text": text}
    best, every = len(chosen), units.counted(len(points), "size")
    told = [f"{best} of {every} are beaten by none: no other is as small and better, or smaller and as good."]
    return findings.page("frontier.html", TITLES, sections, title=f"{name}: size against loss", lead=lead(points),
                         points=told)


def _rows(points: Sequence[Point]) -> list[findings.Row]:
    return [(title(point), _cells(point)) for point in points]


def _curve(points: Sequence[Point]) -> Markup:
    methods = list(dict.fromkeys(point.method for point in points if point.method))
    lines = [_line(method, points, slot) for slot, method in enumerate(methods)]
    return line_chart(lines, x_label="MB of tensors", y_label="bits per byte, text that nobody looked at")


def _line(name: str, points: Sequence[Point], slot: int) -> Series:
    own = [point for point in points if point.method == name]
    own.sort(key=lambda point: point.bytes)
    megabytes = [point.bytes / MB for point in own]
    return Series(name=name, x=megabytes, y=[point.bits_per_byte for point in own], slot=slot)


def title(point: Point) -> str:
    """A size by name."""
    if not point.method:
        return "the model as it came"
    return point.method if point.bits is None else f"{point.method}, {point.bits:g} bits"


def _cells(point: Point) -> list[tuple[str, str]]:
    size = units.si(point.bytes, "B")
    loss = units.fixed(point.bits_per_byte, 4)
    apart, between = _ends(point.gap) if point.method else ("", "")
    return [(size, ""), (loss, ""), (apart, between)]


def _ends(gap: Interval) -> tuple[str, str]:
    low, high = gap.low, gap.high
    between = f"{low:+.4f} to {high:+.4f}"
    return f"{gap.mean:+.4f}", between


def command(point: Point, model: str, text: str) -> str:
    """What makes a point's model; empty for the model as it came."""
    if not point.method:
        return ""
    words = ["mixwell", "apply", point.method, "--in", model, "--out", "SMALLER"]
    words += [f"{name}={value}" for name, value in point.options.items()]
    if hasattr(registry.find(point.method).module(), "needs"):
        words += ["--text", text]
    return shlex.join(words)


def lead(points: Sequence[Point]) -> str:
    """In a sentence, the smallest size whose loss cannot be told from the model's own."""
    whole, *smaller = points
    same = [point for point in smaller if point.gap.low <= 0 and point.bytes < whole.bytes]
    if not same:
        return "Every size costs bits per byte that this text can tell."
    least = min(same, key=_both)
    share = least.bytes / whole.bytes
    size = units.si(least.bytes, "B")
    mean, between = _ends(least.gap)
    return (f"{title(least)}: {size}, {share:.0%} of the model, and this text cannot tell its loss from the model's "
            f"({mean} bits per byte, {between}).")
