"""Many models into one: `mixwell.apply("merge.ties", ["code", "notes"], base="base", out="merged", density=0.5)`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core import machine, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm import folder as folders
from mixwell.lm import receipt
from mixwell.lm.hf.writing import comparable
from mixwell.lm.tokenizer import MAIN, Tokenizer
from mixwell.merge.merging import Model, merged
from mixwell.merge.naming import method_of

CARD = "README.md"


class Source(NamedTuple):
    """One model of a merge."""

    checkpoint: Checkpoint
    name: str  # what errors and the lineage call it


class Recipe(NamedTuple):
    """What is merged, and how."""

    name: str  # as the user wrote it: a method or a row of one
    entry: registry.Entry
    config: Any

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], where: str = "") -> Recipe:
        """The method, or the row of one, and its options."""
        entry, row = method_of(name)
        config = from_dict(entry.module().Config, row | dict(options), where or name)
        return cls(name.removeprefix("merge."), entry, config)


def merge_checkpoints(recipe: Recipe, models: Sequence[Source], base: Source | None, seed: int) -> Checkpoint:
    """The merge, its tensors made when they are asked for; models of several architectures raise `MixwellError`.

    It carries the files and the lineage of the base, or of the first model.
    """
    everyone = [*models] if base is None else [*models, base]
    check_alike(everyone)
    first = base or models[0]
    if "checkpoints" in recipe.entry.tags:
        draws = generator(seed, recipe.entry.name)
        given = [source.checkpoint for source in models]
        ground = None if base is None else base.checkpoint
        return recipe.entry.load()(given, ground, recipe.config, draws)
    model_type = folders.folder_type(first.checkpoint)
    views = [_view(source, model_type) for source in models]
    ground_view = None if base is None else _view(base, model_type)
    tensors = merged(recipe.entry.name, views, ground_view, recipe.config, seed)
    return folders.from_written(tensors, first.checkpoint, model_type, "the merge")


def held(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors in memory: what is looked at several times is made once."""
    tensors = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    return checkpoint.derive(tensors=tensors)


def _view(source: Source, model_type: str) -> Model:
    return Model(folders.unread_tensors(source.checkpoint, model_type), source.name)


def check_alike(sources: Sequence[Source]) -> None:
    """Raise `MixwellError` where models compute in other ways, or call other tokens by the same number."""
    first, *others = sources
    mine = comparable(first.checkpoint.arch)
    for other in others:
        theirs = comparable(other.checkpoint.arch)
        if mine != theirs:
            raise MixwellError(f"{other.name} is another model than {first.name}: "
                               f"{folders.difference(theirs, mine)}. Expected models of one architecture and size.")
        _check_tokens(first, other)


def _check_tokens(first: Source, other: Source) -> None:
    """Raise where both have a tokenizer and a token has another number."""
    files, theirs = first.checkpoint.files, other.checkpoint.files
    known = MAIN in files and MAIN in theirs
    if not known or files[MAIN] == theirs[MAIN]:
        return
    mine = Tokenizer.from_files(files).vocabulary
    there = Tokenizer.from_files(theirs).vocabulary
    apart = mine.items() ^ there.items()
    if not apart:
        return
    _, strange = min((number, token) for token, number in apart)
    raise MixwellError(f"{other.name} has other tokens than {first.name}: {strange!r} is number "
                       f"{there.get(strange, 'none')} there and {mine.get(strange, 'none')} here. A merge's file with "
                       "tokenizer: {source: union} takes both.")


def lineage(recipe: Recipe, models: Sequence[Source], base: Source | None, seed: int) -> dict[str, Any]:
    """The record of a merge, the other models' lineages in it."""
    found = joined(models, base or models[0])
    ground = None if base is None else base.name
    return {**found, "id": recipe.name, "method": recipe.entry.name, "config": to_dict(recipe.config), "seed": seed,
            "base": ground}


def joined(models: Sequence[Source], first: Source) -> dict[str, Any]:
    """What every merge's record says: its models, and the histories of those whose own it does not carry on."""
    names = [source.name for source in models]
    others = {}
    for source in models:
        if source is not first:
            others[source.name] = list(source.checkpoint.lineage)
    return {"stage": "merge", "inputs": names, "lineages": others, "versions": machine.versions()}


@torch.no_grad()
def receipts(recipe: Recipe, parents: Sequence[Source], after: Checkpoint, tokens_BT: Tensor) -> dict[str, Any]:
    """The merge weighed against each parent, by name."""
    found = {}
    for parent in parents:
        weighed = receipt.measure(parent.checkpoint, after, tokens_BT, recipe.entry.name)
        found[parent.name] = weighed.to_dict()
    return found


def card(title: str, recipe_text: str, models: Sequence[str], base: str | None) -> str:
    """README.md of a merged model: what it was made of, and how."""
    ground = [] if base is None else [f"Base: `{base}`", ""]
    listed = [f"- `{name}`" for name in models]
    lines = ["---", "library_name: transformers", "tags:", "- merge", "- mixwell", "---", f"# {title}", "",
             "A merge of models made with mixwell. Merged:", "", *listed, "", *ground, "The recipe:", "", "```yaml",
             recipe_text.rstrip(), "```", ""]
    return "\n".join(lines)


def recipe_text(recipe: Recipe, models: Sequence[str], base: str | None, seed: int) -> str:
    """A merge as a stage of a recipe would say it, JSON values being YAML."""
    entries = {"merge": recipe.name, "from": list(models), "base": base, "seed": seed, **_changed(recipe)}
    lines = []
    for key, value in entries.items():
        if value is not None:
            plain = json.dumps(value)
            lines.append(f"{key}: {plain}")
    return "\n".join(lines)


def _changed(recipe: Recipe) -> dict[str, Any]:
    """The options that are not as the method or the row has them."""
    _, row = method_of(recipe.name)
    usual = from_dict(type(recipe.config), row)
    before = to_dict(usual)
    now = to_dict(recipe.config)
    return {key: value for key, value in now.items() if value != before[key]}
