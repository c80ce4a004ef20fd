"""A merge whose coefficients are searched on one half of a text and checked on the other.

`search("merge.ties", ["code", "notes"], base="base", text="texts", vary={"weight": (0, 1)}, out="merged")`
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core import machine, units
from mixwell.core.checkpoint import Checkpoint, held
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm.documents import Document, Reader
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import MAIN, Tokenizer
from mixwell.merge.merging import in_words
from mixwell.merge.searching import Space, Try, space
from mixwell.merge.searching import search as searched
from mixwell.report.page import facts, render
from mixwell.report.plots import Series, line_chart
from mixwell.report.statistics import Interval, interval
from mixwell.report.targets import check_folder
from mixwell.run.apply import Given, first_ids, rows_of, source_of
from mixwell.run.merging import CARD, Recipe, Source, card, lineage, merge_checkpoints, recipe_text
from mixwell.run.stages.convert import LENGTH

REPORT = "search.html"
ROWS = 4  # windows that are read at a time
FEWEST = 4  # windows of each half, for an interval over them
SHORTEST = 8  # tokens of a window


class Half(NamedTuple):
    """Windows of text."""

    tokens_BT: Tensor
    bytes: float  # UTF-8 bytes of what is predicted


@dataclass(frozen=True)
class Found:
    """What a search came to; losses in bits per byte."""

    checkpoint: Checkpoint  # the merge by the best options
    options: Mapping[str, Any]  # the best ones, beside those that were given
    tries: tuple[Try, ...]  # in order; the first is the method's own options
    checked: Mapping[str, float]  # on the other half: "chosen", "start", and every model's by name
    gain: Interval  # chosen less start on the other half, windows paired; below zero is better

    @property
    def confirmed(self) -> bool:
        """Whether text that the search did not see says, too, that the choice beats the start."""
        return self.gain.high < 0


def search(name: str, models: Sequence[Given], *, text: str | Path, vary: Mapping[str, Sequence[float]] | None = None,
           shared: Mapping[str, Sequence[float]] | None = None, tries: int = 24, tokens: int = 4096,
           base: Given | None = None, out: str | Path | None = None, seed: int = 0,
           options: Mapping[str, Any] | None = None,
           progress: Callable[[int, float], None] | None = None) -> Found:
    """Merge `models` by the method `name` with the coefficients that predict one half of `text` best.

    vary: option -> (least, most), one value for each model where the method takes one a model; shared: the same, one
    value for all. options: those that stay. tries: merges that are made and measured, the first with the method's own
    options. tokens: of each half at most; documents fall to one half or the other whole, a single one is cut in two.
    out: folder of the merge, with the report `search.html` in it. progress: called with the number of each try and its
    loss. A try whose coefficients the method refuses, or whose merge has no finite loss, counts as worst. Raises
    `MixwellError` for text too short, options unknown, models that do not go together, and where every try is such.
    """
    if tries < 2:
        raise MixwellError(f"tries is {tries}; expected at least 2, one of which is the method's own options.")
    if out is not None:
        check_folder(out)
    sources = [source_of(model, f"model {number}") for number, model in enumerate(models, start=1)]
    ground = None if base is None else source_of(base, "the base")
    config = Recipe.of(name, options or {}).config
    box = space(type(config), vary or {}, shared or {}, len(sources))
    first = (ground or sources[0]).checkpoint
    search_half, check_half = halves(text, first.files, tokens, seed)
    trial = _Trial(name, sources, ground, dict(options or {}), seed, search_half)
    numbers = itertools.count(1)

    def loss(values: tuple[float, ...]) -> float:
        number = next(numbers)
        options = box.options(values)
        try:
            per_byte = trial.loss(options)
        except MixwellError:
            if number == 1:
                raise
            per_byte = math.inf  # weights that sum to 0, say
        if progress is not None:
            progress(number, per_byte)
        return per_byte

    with in_words(name):
        start = box.start(config)
    made = searched(loss, box, start, tries, seed)
    if not any(math.isfinite(one.loss) for one in made):
        raise MixwellError(f"no try of {len(made)} has a finite loss; search narrower ranges, or other models.")
    found, record = _checked(trial, box, made, check_half, str(text))
    if out is not None:
        _written(found.checkpoint, out, record, trial)
    return found


class _Trial:
    """A merge with everything settled but the coefficients."""

    def __init__(self, name: str, sources: list[Source], ground: Source | None, options: dict[str, Any],
                 seed: int, text: Half) -> None:
        self.name, self.sources, self.ground = name, sources, ground
        self.options, self.seed, self.text = options, seed, text

    @property
    def everyone(self) -> list[Source]:
        """The models, and the base where there is one."""
        if self.ground is None:
            return self.sources
        return [*self.sources, self.ground]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The method with these coefficients."""
        return Recipe.of(self.name, {**self.options, **values})

    def merged(self, values: Mapping[str, Any]) -> Checkpoint:
        """The merge by these coefficients; methods that look at text look at that of the search."""
        recipe = self.recipe(values)
        return held(merge_checkpoints(recipe, self.sources, self.ground, self.seed, self.text.tokens_BT))

    def loss(self, values: Mapping[str, Any]) -> float:
        """Bits per byte of that merge on the text of the search."""
        bits_B = window_bits(self.merged(values), self.text)
        return float(bits_B.sum()) / self.text.bytes


def window_bits(checkpoint: Checkpoint, half: Half) -> Tensor:
    """Bits to predict each window, float64 [B]; not finite where the model's logits are not."""
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
    found = []
    for tokens_BT in half.tokens_BT.split(ROWS):
        nats_BT = model.token_nats(tokens_BT[:, :-1], tokens_BT[:, 1:])
        found.append(nats_BT.double().sum(1))
    return torch.cat(found) / math.log(2)


def halves(text: str | Path, files: Mapping[str, bytes], tokens: int, seed: int) -> tuple[Half, Half]:
    """Windows to search on, and others, of other documents, to check the choice on; text too short raises."""
    if MAIN not in files:
        raise MixwellError("the models have no tokenizer to read the text with; a search needs one.")
    tokenizer = Tokenizer.from_files(files)
    parts = _dealt(list(Reader(text)), seed)
    ids = [first_ids(tokenizer, part, tokens) for part in parts]
    shortest = min(map(len, ids))
    length = min(LENGTH, shortest // FEWEST)
    if length < SHORTEST:
        raise MixwellError(f"{text} gives {shortest} tokens for one half; expected at least {FEWEST * SHORTEST}, to "
                           "search on one half and to check on the other.")
    bytes_V = torch.from_numpy(tokenizer.token_bytes_V.astype("float64"))
    first, second = (_half(own, length, bytes_V) for own in ids)
    return first, second


def _dealt(documents: list[Document], seed: int) -> tuple[list[str], list[str]]:
    """Texts in two halves: whole documents in turn, each but once; a single one is cut in the middle."""
    once = {document.identity: document.text for document in documents}
    texts = list(once.values())
    if len(texts) == 1:
        middle = len(texts[0]) // 2
        return [texts[0][:middle]], [texts[0][middle:]]
    draws = generator(seed, "search", "text")
    order = torch.randperm(len(texts), generator=draws).tolist()
    shuffled = [texts[place] for place in order]
    return shuffled[::2], shuffled[1::2]


def _half(ids: list[int], length: int, bytes_V: Tensor) -> Half:
    tokens_BT = rows_of(ids, length)
    size = bytes_V[tokens_BT[:, 1:]].sum()
    return Half(tokens_BT, float(size))


def _checked(trial: _Trial, box: Space, made: list[Try], check: Half, text: str) -> tuple[Found, dict[str, Any]]:
    """The merge by the best coefficients, weighed on text that the search did not see, and its record."""
    best = min(made, key=lambda one: one.loss)
    options, own = box.options(best.values), box.options(made[0].values)
    after = trial.merged(options)
    chosen_B = window_bits(after, check)
    start_B = window_bits(trial.merged(own), check)
    totals = {source.name: window_bits(held(source.checkpoint), check).sum() for source in trial.everyone}
    totals |= {"chosen": chosen_B.sum(), "start": start_B.sum()}
    checked = {name: float(total) / check.bytes for name, total in totals.items()}
    mean_bytes = check.bytes / len(chosen_B)
    apart_B = (chosen_B - start_B) / mean_bytes
    known = bool(apart_B.isfinite().all())
    gain = interval(apart_B.tolist()) if known else Interval(math.nan, math.nan, len(apart_B))
    found = Found(after, options, tuple(made), checked, gain)
    record = lineage(trial.recipe(options), trial.sources, trial.ground, trial.seed)
    record["search"] = plain(found, box, text)
    kept = after.derive(record=record)
    return replace(found, checkpoint=kept), record


def _written(after: Checkpoint, out: str | Path, record: Mapping[str, Any], trial: _Trial) -> None:
    names, ground = record["inputs"], record["base"]
    title = Path(out).name
    recipe = trial.recipe(record["search"]["chosen"])
    about = card(title, recipe_text(recipe, names, ground, trial.seed), names, ground)
    notes = {CARD: about, REPORT: page(title, record)}
    folders.write(after, out, notes=notes)


def plain(found: Found, box: Space, text: str) -> dict[str, Any]:
    """A search as plain data for JSON; losses in bits per byte, None where they are not finite."""
    tried = [{"options": box.options(one.values), "loss": _finite(one.loss)} for one in found.tries]
    ends = found.gain
    gain = {"mean": _finite(ends.mean), "low": _finite(ends.low), "high": _finite(ends.high)}
    best = min(one.loss for one in found.tries)
    made = {"text": text, "tries": tried, "loss": best}
    made["chosen"] = dict(found.options)
    made["checked"] = {name: _finite(bits) for name, bits in found.checked.items()}
    return {**made, "gain": gain, "confirmed": found.confirmed}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verdict(record: Mapping[str, Any]) -> str:
    """In a sentence, whether the choice held on text that the search did not see."""
    gain = record["gain"]
    if gain["mean"] is None:
        return ("Text that the search did not see does not confirm the choice: the loss of it or of the method's own "
                "options is not finite there.")
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    between = f"{low:+.4f} to {high:+.4f}"
    ends = f"{mean:+.4f} bits per byte against the method's own options ({between})"
    if record["confirmed"]:
        return f"The choice holds on text that the search did not see: {ends}."
    return f"Text that the search did not see does not confirm the choice: {ends}."


def page(title: str, record: Mapping[str, Any]) -> str:
    """The report: the curve of the search, the check, and every try."""
    made = record["search"]
    losses = [math.inf if one["loss"] is None else one["loss"] for one in made["tries"]]
    numbers = list(range(1, len(losses) + 1))
    best = [min(losses[:number]) for number in numbers]
    each = Series(name="each try", x=numbers, y=losses)
    least = Series(name="best so far", x=numbers, y=best, slot=1)
    curve = line_chart([each, least], x_label="tries", y_label="bits per byte, text of the search")
    checked = [(name, [(units.fixed(bits, 4), "")]) for name, bits in made["checked"].items()]
    tried = [(str(number), [(units.fixed(one["loss"], 4), ""), (_shown(one["options"]), "")])
             for number, one in zip(numbers, made["tries"])]
    computer = machine.describe(torch.get_num_threads())
    now = datetime.now(UTC).isoformat()
    about = facts(computer, now, more=record["method"])
    versions = list(record["versions"].items())
    chosen, told = _shown(made["chosen"]), verdict(made)
    toc = [("curve", "The search"), ("check", "Check"), ("tries", "Every try"), ("machine", "Machine and versions")]
    return render("search.html", title=title, facts=about, toc=toc, lead=told, chosen=chosen, curve=curve,
                  checked=checked, tried=tried, machine=versions, text=made["text"])


def _shown(options: Mapping[str, Any]) -> str:
    parts = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        numbers = ", ".join(f"{number:g}" for number in values)
        parts.append(f"{name} {numbers}")
    return "; ".join(parts)
