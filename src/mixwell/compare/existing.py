"""Models that exist, held against each other on text that neither was trained on, without training anything.

Each reads the same documents with its own tokenizer; bits per byte are on one scale whatever that is. The difference
of two models is taken document by document.

    <out>/evaluate.json, <out>/report.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mixwell.compare import existing_page
from mixwell.compare.measured import RECORD, Measured
from mixwell.compare.texts import Text, as_written, counted_bytes, parse_budget, read, within_tokens
from mixwell.core import machine
from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from mixwell.lm.model import LanguageModel
from mixwell.lm.scoring import score
from mixwell.lm.tokenizer import Tokenizer
from mixwell.report.targets import check_folder
from mixwell.run.costs import Progress
from mixwell.run.paths import find_adapter, find_model, load
from mixwell.run.recipe import Recipe
from mixwell.run.stages.evaluate import EvaluateConfig


def evaluate(models: Sequence[str | Path], data: str | Path | Text | None = None, *,
             budget: Mapping[str, Any] | str | None = None, reading: EvaluateConfig | None = None,
             out: str | Path | None = None, adapters: Mapping[str, str] | None = None,
             progress: Progress = lambda words: None) -> Path:
    """Measure models that exist on the same text and return the path of the report.

    models: model folders, folders of stages, or `RUN:STAGE`; the others are held against the first. data: a file,
    folder or glob, all of which is read; none: held-out text of the standard library. budget: `bytes=1M` or
    `tokens=60k` of each domain, the latter by the tokenizer that makes most of them; whole documents but the last.
    reading: tokens that a model sees at once, and windows read together. out: folder, default
    `runs/evaluate-<names>`. adapters: name -> place of adapters of the one model, which is then held against itself
    with each beside it. progress: hears what is done.

    A model without a tokenizer, or a name that leads to no model, raises `MixwellError`.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    sides = _sides(named(models), adapters or {})
    folder = Path(out or default_folder(sides))
    check_folder(folder, own=(RECORD,))
    limits = parse_budget(budget)
    config = reading or EvaluateConfig()
    tokenizers = {name: _tokenizer(side.model) for name, side in sides.items()}
    torch.set_num_threads(machine.threads())
    progress("read the text")
    whole = data if isinstance(data, Text) else read(data, limits)
    whole = as_written(whole, tokenizers)
    text = within_tokens(whole, limits, list(tokenizers.values()))
    found = []
    for name, side in sides.items():
        progress(f"{name} reads")
        found.append(measured(name, side.model, tokenizers[name], text, config, side.adapter))
    wall = time.perf_counter() - clock
    sealed.write(folder / RECORD, _record(found, text, limits, config, started, wall))
    return existing_page.build(folder)


@dataclass(frozen=True)
class Side:
    """A model's folder, and that of an adapter beside it."""

    model: Path
    adapter: Path | None = None


def _sides(names: Mapping[str, str], adapters: Mapping[str, str]) -> dict[str, Side]:
    """What is measured, by name: the models, or the one model and the same with each adapter."""
    places = {name: Side(find_model(model)) for name, model in names.items()}
    if not adapters:
        return places
    if len(places) > 1:
        raise MixwellError(f"adapters stand beside one model; {len(places)} came ({', '.join(places)}).")
    ((base, side),) = places.items()
    for name, place in adapters.items():
        places[f"{base}+{name}"] = Side(side.model, find_adapter(place))
    return places


def named(models: Sequence[str | Path]) -> dict[str, str]:
    """Name -> model as given: the last part of its path where that tells it from the others.

    Raises `MixwellError` where there is none, or one comes twice.
    """
    given = [str(model).rstrip("/") for model in models]
    different = set(given)
    if not given or len(different) < len(given):
        came = ", ".join(given) or "none"
        raise MixwellError(f"expected one model or more, each once, got {came}.")
    ends = [Path(one).name for one in given]
    found = {}
    for end, whole in zip(ends, given):
        name = end if ends.count(end) == 1 else whole
        found[name] = whole
    return found


def default_folder(names: Iterable[str]) -> Path:
    """`runs/evaluate-<names>`."""
    words = ["evaluate"]
    for name in names:
        safe = re.sub(r"[^\w.-]+", "_", name)
        words.append(safe.strip("._"))
    return Path("runs") / "-".join(words)


def only_models(chosen: Recipe, vary: Mapping[str, Sequence[Any]], budget: str | None) -> list[str]:
    """The models where a comparison varies nothing else and trains nothing; else none."""
    if set(vary) != {"model"} or budget or chosen.stages:
        return []
    models = vary["model"]
    return [str(model) for model in models] if all(isinstance(model, str) for model in models) else []


def _tokenizer(folder: Path) -> Tokenizer:
    """The model's own."""
    try:
        return Tokenizer.load(folder)
    except MixwellError as error:
        raise MixwellError(f"{folder}: no tokenizer to read text with ({error})") from error


def measured(name: str, folder: Path, tokenizer: Tokenizer, text: Text, config: EvaluateConfig,
             adapter: Path | None = None) -> Measured:
    """Read the text with one model, which is in memory only meanwhile."""
    model = load(folder, adapter=adapter)
    path = str(folder) if adapter is None else f"{folder}+{adapter}"
    bits, lost = {}, {}
    tokens, seconds = 0, 0.0
    for domain, documents in text.domains.items():
        found = score(model, tokenizer, documents, batch_size=config.batch_size, seq_len=config.seq_len)
        bits[domain] = found.bits_N.tolist()
        lost[domain] = sum(not _given_back(tokenizer, document.text) for document in documents)
        tokens += found.tokens
        seconds += found.seconds
    return Measured(name=name, path=path, tokenizer=tokenizer.digest, tokens=tokens, seconds=seconds, bits=bits,
                    lost=lost, **_sizes(model))


def _given_back(tokenizer: Tokenizer, text: str) -> bool:
    if tokenizer.round_trips:
        return True
    ids = tokenizer.encode(text)
    return tokenizer.decode(ids) == text


def _sizes(model: LanguageModel) -> dict[str, Any]:
    every = model.num_parameters()
    active = model.num_parameters(active=True)
    stored = 0
    for tensor in model.state_dict().values():
        stored += tensor.numel() * tensor.element_size()
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "parameters": every,
        "active_parameters": active,
        "weights_bytes": stored,
        "active_bytes": round(stored * active / every)}


def _record(found: Sequence[Measured], text: Text, limits: Mapping[str, float], config: EvaluateConfig,
            started: datetime, wall: float) -> dict[str, Any]:
    sizes = {name: [counted_bytes(document) for document in own] for name, own in text.domains.items()}
    return {
        "models": [asdict(one) for one in found],
        "text": {"source": text.source, "bytes": sizes, "notices": list(text.notices), "pieces": text.pieces},
        "budget": dict(limits),
        "reading": asdict(config),
        "machine": machine.describe(torch.get_num_threads()),
        "versions": machine.versions(),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": wall}
