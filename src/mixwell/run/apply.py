"""One method on one model, outside a recipe: `mixwell.apply("convert.upcycle", "dense", out="moe", num_experts=8)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.convert.calibration import asked
from mixwell.core import machine, registry
from mixwell.core.checkpoint import Checkpoint, held
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.documents import Reader
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import Tokenizer
from mixwell.report.targets import check_folder
from mixwell.run import adapting
from mixwell.run.merging import (
    CARD,
    Recipe,
    Source,
    bits_per_byte,
    card,
    lineage,
    merge_checkpoints,
    receipts,
    recipe_text,
)
from mixwell.run.merging_factors import is_adapter
from mixwell.run.paths import find_adapter, find_model
from mixwell.run.room import check_room
from mixwell.run.stages.convert import LENGTH, ROWS, converted, read_other, spilled_beside

ROOMS = ("convert", "precision")  # whose methods turn one checkpoint into another
Given = LanguageModel | str | Path  # a model, or its place


def apply(name: str, model: Given | Sequence[Given], *, out: str | Path | None = None,
          text: str | Path | None = None, seed: int = 0, base: Given | None = None,
          adapter: str | Path | None = None, **options: Any) -> LanguageModel:
    """Apply the method `name` to a model, given as such or by its place, and return the new model.

    model: a `LanguageModel`, a model folder, a stage's folder, or a run's stage such as `runs/mine:dense`; a list of
    them for a merge. base: of a merge, the model that the others were tuned from. adapter: of `adapters.*`, the folder
    or the stage of the adapter that is merged into the model (`mixwell.run.adapting.Options`).

    The model is weighed before and after on `text` (a file, folder or glob), else on random tokens; a broken promise
    raises `MixwellError` and writes nothing. The receipt is in the last record of the result's `lineage`.
    out: folder to write the result to. seed: of methods that draw. options: fields of the method's `Config`.
    """
    if adapter is not None and not name.startswith(f"{adapting.ROOM}."):
        raise MixwellError(f"{name} takes no adapter; adapters.lora and its kind merge one into a model.")
    if name.startswith("merge."):
        after = merge(name, [model] if isinstance(model, Given) else model, base=base, out=out, text=text, seed=seed,
                      options=options)
        return LanguageModel.from_checkpoint(after)
    if base is not None or not isinstance(model, Given):
        raise MixwellError(f"{name} takes one model; a base and several models go with a merge (merge.ties, say).")
    if name.startswith(f"{adapting.ROOM}."):
        after = adapt(name, model, adapter, out=out, text=text, seed=seed, options=options)
        return LanguageModel.from_checkpoint(after)
    after = convert(name, model, out=out, text=text, seed=seed, options=options)
    return LanguageModel.from_checkpoint(after)


def convert(name: str, model: Given, *, options: Mapping[str, Any], out: str | Path | None = None,
            text: str | Path | None = None, seed: int = 0) -> Checkpoint:
    """As `apply` with a method of `ROOMS`; gives the checkpoint, which lies in the folder `out` where one is named."""
    entry = registry.find(name) if "." in name else _short(name)
    if entry.room not in ROOMS or not hasattr(entry.module(), "promises"):
        raise MixwellError(f"{entry.name} turns no checkpoint into another; expected a method of {' or '.join(ROOMS)}.")
    if out is not None:
        check_folder(out)
    config = from_dict(entry.module().Config, options, entry.name)
    before = _checkpoint(model)
    needs = asked(entry.module(), config)
    if needs.tokens and text is None:
        raise MixwellError(f"{entry.name} looks at text with these options; name some (--text FILE, or text=...).")
    check_room(entry, before, config, out)
    given = _given(text, needs.tokens, before, seed)
    tokens_BT = given.tokens_BT
    measured_on = "random tokens" if text is None else str(text)
    source = _name(model)
    with spilled_beside(entry.name, out) as spill:
        after, receipt = converted(before, entry.name, config, seed, tokens_BT, given.calibration, given.bytes_V, spill)
        after = after.derive(record={
            "id": entry.name, "stage": entry.room, "method": entry.name, "config": to_dict(config), "seed": seed,
            "inputs": [source, *needs.models], "tokens": tokens_BT.numel(), "measured_on": measured_on,
            "versions": machine.versions(), "receipt": receipt.to_dict()})
        if out is None:
            return after
        folders.write(after, out)
    written = folders.read(out)
    return after.derive(tensors=written.tensors)


def adapt(name: str, model: Given, adapter: str | Path | None, *, options: Mapping[str, Any],
          out: str | Path | None = None, text: str | Path | None = None, seed: int = 0) -> Checkpoint:
    """Merge the adapter in a folder into a model, or take it out of it (`unmerge`), and write the result to `out`."""
    chosen = adapting.options_of(options, name)
    if chosen.layout is not None:
        raise MixwellError(f"{name} with a layout writes an adapter, no model; use mixwell.run.apply.convert_adapter.")
    if out is not None:
        check_folder(out)
    work = adapter_work(name, model, adapter, chosen, text, seed)
    after = adapting.unmerge(name, work) if chosen.unmerge else adapting.merge(name, work)
    if out is not None:
        folders.write(after, out)
    return after


def convert_adapter(name: str, model: Given, adapter: str | Path | None, *, options: Mapping[str, Any],
                    out: str | Path, text: str | Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Write the adapter in a folder in the layout that `options` names; see `mixwell.run.adapting.convert`."""
    chosen = adapting.options_of(options, name)
    check_folder(out)
    work = adapter_work(name, model, adapter, chosen, text, seed)
    return adapting.convert(name, work, Path(out))


def adapter_work(name: str, model: Given, adapter: str | Path | None, chosen: adapting.Options,
                 text: str | Path | None, seed: int) -> adapting.Work:
    """The base, the adapter's folder and the tokens to weigh on: of `text`, else random ones."""
    if adapter is None:
        raise MixwellError(f"{name} merges an adapter into its base; name the adapter's folder with --adapter. To "
                           "train one, a recipe has `adapt:`.")
    checkpoint = _checkpoint(model)
    given = _given(text, 0, checkpoint, seed)
    return adapting.Work(base=checkpoint, name=_name(model), folder=find_adapter(adapter), tokens_BT=given.tokens_BT,
                         bytes_V=given.bytes_V, options=chosen)


def _name(model: Given) -> str:
    return "a model in memory" if isinstance(model, LanguageModel) else str(model)


def source_of(model: Given, place: str) -> Source:
    """A model of a merge, by a name that no other has; a folder may come twice."""
    name = f"{place}, in memory" if isinstance(model, LanguageModel) else str(model)
    return Source(_checkpoint(model), name)


def _checkpoint(model: Given) -> Checkpoint:
    if isinstance(model, LanguageModel):
        return model.to_checkpoint()
    return folders.read(find_model(model))


def merge(name: str, models: Sequence[Given], *, options: Mapping[str, Any], base: Given | None = None,
          out: str | Path | None = None, text: str | Path | None = None, seed: int = 0,
          weigh: bool = True) -> Checkpoint:
    """Merge models by the method `name`, and return the checkpoint, which lies in the folder `out` where one is named.

    With `weigh`, the merge and every model are measured on `text`, else on random tokens; that takes the memory of two
    models, merging takes that of one tensor.
    """
    adapter = next((model for model in models if is_adapter(model)), None)
    if adapter is not None:
        raise MixwellError(f"{adapter} is a PEFT adapter; adapters are merged into one by "
                           "mixwell.run.merging_adapters.merge_adapters, or `mixwell apply`.")
    recipe = Recipe.of(name, options)
    if out is not None:
        check_folder(out)
    numbered = enumerate(models, start=1)
    sources = [source_of(model, f"model {number}") for number, model in numbered]
    ground = None if base is None else source_of(base, "the base")
    first = (ground or sources[0]).checkpoint
    text_BT = None if text is None else _read(text, first.files, ROWS)[0]
    after = merge_checkpoints(recipe, sources, ground, seed, text_BT)
    record = lineage(recipe, sources, ground, seed)
    if weigh:
        after = held(after)
        parents = sources if ground is None else [*sources, ground]
        tokens_BT = _random(after.arch["vocab_size"], seed) if text_BT is None else text_BT
        weighed = receipts(recipe, parents, after, tokens_BT)
        if text_BT is not None:
            record["bits_per_byte"] = bits_per_byte(weighed, text_BT, first.files)
        record |= {"receipts": weighed, "receipt": weighed[parents[-1].name], "tokens": tokens_BT.numel(),
                   "measured_on": "random tokens" if text is None else str(text)}
    after = after.derive(record=record)
    if out is None:
        return after
    names, ground_name = record["inputs"], record["base"]
    about = card(Path(out).name, recipe_text(recipe, names, ground_name, seed), names, ground_name)
    folders.write(after, out, notes={CARD: about})
    return folders.read(out)


def _short(name: str) -> registry.Entry:
    """The method of that name, or of that last part where only one of these rooms has it."""
    entries = [entry for room in ROOMS for entry in registry.family(room)]
    found = [entry for entry in entries if _last_part(entry) == name]
    if len(found) == 1:
        return found[0]
    return registry.find(name)


def _last_part(entry: registry.Entry) -> str:
    return entry.name.rpartition(".")[2]


def _random(vocab_size: int, seed: int) -> Tensor:
    draws = generator(seed, "receipt")
    return torch.randint(0, vocab_size, (ROWS, LENGTH), generator=draws)


class _Given(NamedTuple):
    """What a conversion is measured on, and what it may look at before."""

    tokens_BT: Tensor
    calibration: TextCalibration
    bytes_V: Tensor | None  # bytes of each token, where the tokens are text


def _given(text: str | Path | None, looked_at: int, before: Checkpoint, seed: int) -> _Given:
    """Windows of the text, those to look at first and others to measure on behind them; random ones without a text."""
    if text is None:
        tokens_BT = _random(before.arch["vocab_size"], seed)
        return _Given(tokens_BT, TextCalibration(tokens_BT, models=read_other), None)
    rows = -(-looked_at // LENGTH)
    windows_NT, bytes_V = _read(text, before.files, rows + ROWS)
    there = len(windows_NT)
    if rows and there < 2:
        raise MixwellError(f"{text} gives {windows_NT.numel()} tokens; expected at least {2 * LENGTH}, some to look at "
                           "and others to measure on.")
    half = there // 2
    first = min(rows, half)
    measured = min(ROWS, there - first)
    first_NT = windows_NT[:-measured]
    rest_BT = windows_NT[-measured:]
    looked = TextCalibration(first_NT, models=read_other)
    return _Given(rest_BT, looked, bytes_V)


def _read(text: str | Path, files: Any, most: int) -> tuple[Tensor, Tensor]:
    """The beginning of the text as windows [N, T], `most` of them at most, and the bytes of each token."""
    if "tokenizer.json" not in files:
        raise MixwellError("the model has no tokenizer to read the text with; leave it out to weigh on random tokens.")
    tokenizer = Tokenizer.from_files(files)
    texts = (document.text for document in Reader(text))
    ids = first_ids(tokenizer, texts, most * LENGTH)
    length = min(LENGTH, len(ids))
    if length < 2:
        raise MixwellError(f"{text} gives {len(ids)} tokens; expected at least 2.")
    bytes_V = tokenizer.token_bytes_V.astype("int64")
    return rows_of(ids, length), torch.from_numpy(bytes_V)


def first_ids(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> list[int]:
    """The first `most` ids of texts that follow each other; those behind are not asked for."""
    found: list[int] = []
    for text in texts:
        found += tokenizer.prompt(text)
        if len(found) >= most:
            break
    return found[:most]


def rows_of(ids: list[int], length: int) -> Tensor:
    """Whole windows one behind the other, [N, T]; what is left over is dropped."""
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)
