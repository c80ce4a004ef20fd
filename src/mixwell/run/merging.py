"""Many models into one: `mixwell.apply("merge.ties", ["code", "notes"], base="base", out="merged", density=0.5)`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core import machine, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.formats.declared import floating
from mixwell.lm import folder as folders
from mixwell.lm.hf.writing import comparable
from mixwell.lm.tokenizer import MAIN, Tokenizer
from mixwell.merge.merging import Model, Rule, agreed, in_words, merged, places_of, same_names
from mixwell.merge.naming import method_of

CARD = "README.md"
WHOLE = ("checkpoints", "statistics")  # tags of methods that see whole models
CARD_TEXT = """---
library_name: transformers
tags:
- merge
- mixwell
---
# {title}

A merge of models made with mixwell. Merged:

{listed}

{ground}The recipe:

```yaml
{text}
```
"""


class Source(NamedTuple):
    """One model of a merge."""

    checkpoint: Checkpoint
    name: str  # what errors and the lineage call it


class Recipe(NamedTuple):
    """What is merged, and how."""

    name: str  # as the user wrote it: a method or a row of one
    entry: registry.Entry
    config: Any
    dtype: torch.dtype | None = None  # of the result; None: that of the models, which is one then

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any], where: str = "") -> Recipe:
        """The method, or the row of one, and its options; `dtype` among them is the result's, whatever the method."""
        entry, row = method_of(name)
        own = row | dict(options)
        place = where or name
        named = own.pop("dtype", None)
        dtype = None if named is None else floating(named, f"{place}.dtype")
        config = from_dict(entry.module().Config, own, place)
        return cls(name.removeprefix("merge."), entry, config, dtype)

    @property
    def options(self) -> dict[str, Any]:
        """What `of` makes it of again."""
        plain = to_dict(self.config)
        if self.dtype is None:
            return plain
        dtype = str(self.dtype).removeprefix("torch.")
        return {**plain, "dtype": dtype}


def merge_checkpoints(recipe: Recipe, models: Sequence[Source], base: Source | None, seed: int,
                      text_BT: Tensor | None = None) -> Checkpoint:
    """The merge, its tensors made when they are asked for; models of several architectures raise `MixwellError`.

    It carries the files and the lineage of the base, or of the first model. text_BT: of methods that look at what
    models make of text.
    """
    everyone = [*models] if base is None else [*models, base]
    check_alike(everyone)
    first = base or models[0]
    Rule(recipe.entry, recipe.name).check(len(models), base is not None)
    if not recipe.entry.tags.isdisjoint(WHOLE):
        return _of_whole(recipe, models, seed, text_BT)
    model_type = folders.folder_type(first.checkpoint)
    views = [_view(source, model_type) for source in models]
    ground_view = None if base is None else _view(base, model_type)
    tensors = merged(recipe.entry.name, views, ground_view, recipe.config, seed, recipe.dtype, recipe.name)
    return folders.from_written(tensors, first.checkpoint, model_type, "the merge")


def _of_whole(recipe: Recipe, models: Sequence[Source], seed: int, text_BT: Tensor | None) -> Checkpoint:
    """The merge by a method that sees whole models, which it gets in float32 or better."""
    name = recipe.entry.name
    if "statistics" in recipe.entry.tags and text_BT is None:
        raise MixwellError(f"{name} looks at what the models make of text; give it (--text).")
    views = [Model(source.checkpoint.tensors, source.name) for source in models]
    places = {tensor: places_of(views, tensor) for tensor in same_names(views)}
    forms = {tensor: agreed(tensor, found, recipe.dtype) for tensor, found in places.items()}
    given = []
    for number, source in enumerate(models):
        wide = {tensor: found[number].whole() for tensor, found in places.items()}
        given.append(source.checkpoint.derive(tensors=wide))
    draws = generator(seed, name)
    with in_words(name):
        made = _made(recipe, given, draws, text_BT)
    kept = {tensor: found.to(forms[tensor].dtype) for tensor, found in made.items()}
    return models[0].checkpoint.derive(tensors=kept)


def _made(recipe: Recipe, models: Sequence[Checkpoint], draws: torch.Generator,
          text_BT: Tensor | None) -> Mapping[str, Tensor]:
    if "statistics" in recipe.entry.tags and text_BT is not None:
        return _by_statistics(recipe, models, draws, text_BT)
    made: Checkpoint = recipe.entry.load()(models, None, recipe.config, draws)
    return made.tensors


def _by_statistics(recipe: Recipe, models: Sequence[Checkpoint], draws: torch.Generator,
                  text_BT: Tensor) -> Mapping[str, Tensor]:
    """The merge by what the models make of text, each row of which is an example."""
    measured = recipe.entry.module().measured
    statistics = []
    for model in models:
        found = measured(Reading(model), text_BT, recipe.config, draws)
        statistics.append({name.removeprefix("model."): tensor for name, tensor in found.items()})
    tensors = [model.tensors for model in models]
    return recipe.entry.load()(tensors, statistics, recipe.config)


class Reading(nn.Module):
    """A model that says of a row of tokens [T] how likely each next token is: log probabilities [T, V]."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        from mixwell.lm.model import LanguageModel  # which answers chats, too, and so reads templates

        self.model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Log probabilities."""
        output = self.model(tokens_T.unsqueeze(0))
        logits_TV = output.logits_BTV[0]
        return logits_TV.log_softmax(-1)


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
    found["id"] = recipe.name
    found["method"] = recipe.entry.name
    found["config"] = recipe.options
    found["base"] = None if base is None else base.name
    return {**found, "seed": seed}


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
    from mixwell.lm import (
        receipt,  # evaluation and what it reads text with, which a merge without a look has no use for
    )

    found = {}
    for parent in parents:
        weighed = receipt.measure(parent.checkpoint, after, tokens_BT, recipe.entry.name)
        found[parent.name] = weighed.to_dict()
    return found


def bits_per_byte(found: Mapping[str, Mapping[str, Any]], text_BT: Tensor,
                  files: Mapping[str, bytes]) -> dict[str, float]:
    """Bits to predict the text, over its UTF-8 bytes: of every parent in `found` by name, and of the merge."""
    behind_another = text_BT[:, 1:]
    sizes_V = Tokenizer.from_files(files).token_bytes_V
    size = float(sizes_V[behind_another.numpy()].sum())
    share = behind_another.numel() / (math.log(2) * size)
    losses = {name: one["loss_before_nats"] for name, one in found.items()}
    for one in found.values():
        losses["the merge"] = one["loss_after_nats"]
    return {name: share * loss for name, loss in losses.items()}


def card(title: str, recipe_text: str, models: Sequence[str], base: str | None) -> str:
    """README.md of a merged model: what it was made of, and how."""
    listed = "\n".join(f"- `{name}`" for name in models)
    ground = "" if base is None else f"Base: `{base}`\n\n"
    text = recipe_text.rstrip()
    return CARD_TEXT.format(title=title, listed=listed, ground=ground, text=text)


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
    now = recipe.options
    keys = [key for key in now if now[key] != before.get(key)]
    return {key: now[key] for key in keys}
