"""One vocabulary for models that have several: whose tokens a merge takes, and the rows of those that a model lacks.

A token that a model lacks gets a row there: what the file says of it, else that of the one model that has it, else the
base's, else the mean over the models that have it.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.lm import tokenizer_files as layout
from mixwell.lm.tokenizer import MAIN, Tokenizer
from mixwell.merge.reading import Place
from mixwell.run.mergekit_file import File, reference
from mixwell.run.merging import Source

ENDS = ("embed_tokens", "embed.", "embed_in", "wte", "lm_head", "head.weight", "embed_out")


@dataclass(frozen=True, kw_only=True)
class TokenRule:
    """What a file says of one token."""

    source: Any = None  # a model, {kind: zero}, or {kind: model_token, model: .., token: .. or token_id: ..}
    force: bool = False  # for models that have the token as well


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The entry `tokenizer` of a file."""

    source: Any = "union"
    tokens: Mapping[str, TokenRule] | None = None
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a merge, and where each model has them."""

    tokenizer: Tokenizer
    ids: Mapping[str, Mapping[str, int]]  # model -> token -> row
    rules: Mapping[str, TokenRule]
    base: str
    rows: int

    def placed(self, name: str, place: Place, others: Sequence[Place]) -> Place:
        """Where a model's tensor lies, its rows brought into the order of the vocabulary where it has a row a token."""
        count, *rest = place.form.shape
        has_rows = any(end in name for end in ENDS)
        if not has_rows or count < len(self.ids[place.where]):
            return place
        prepared = functools.partial(self.ordered, model=place.where, others=others)
        return replace(place, prepared=prepared, shape=(self.rows, *rest))

    def ordered(self, own: Tensor, model: str, others: Sequence[Place]) -> Tensor:
        """The rows of a model's tensor, those of tokens that it lacks made of others'."""
        rows = torch.zeros(self.rows, *own.shape[1:], dtype=own.dtype)
        known = {model: own}
        for token, number in self.tokenizer.vocabulary.items():
            rule = self.rules.get(token, TokenRule())
            place = self.ids[model].get(token)
            if place is not None and not rule.force:
                rows[number] = own[place]
            else:
                rows[number] = self._made(token, rule, known, others)
        count = len(self.tokenizer.vocabulary)
        rows[count:] = rows[:count].mean(0)
        return rows

    def _made(self, token: str, rule: TokenRule, known: dict[str, Tensor], others: Sequence[Place]) -> Tensor | float:
        """The row of a token that a model lacks."""
        if isinstance(rule.source, Mapping) and rule.source.get("kind") == "zero":
            return 0.0
        if isinstance(rule.source, Mapping) and rule.source.get("kind") == "model_token":
            donor = reference(rule.source.get("model"))
            return _tensor(donor, known, others)[self._row(donor, rule.source)]
        if rule.source is not None:
            donor = reference(rule.source)
            return _tensor(donor, known, others)[self._row(donor, {"token": token})]
        having = [place.where for place in others if token in self.ids[place.where]]
        if self.base in having:
            having = [self.base]
        if not having:
            return 0.0
        found = [_tensor(donor, known, others)[self.ids[donor][token]] for donor in having]
        return torch.stack(found).mean(0)

    def _row(self, model: str, source: Mapping[str, Any]) -> int:
        """The row of the token that a file names by its spelling or its number."""
        token = source.get("token")
        number = source.get("token_id") if token is None else self.ids.get(model, {}).get(str(token))
        if not isinstance(number, int):
            raise MixwellError(f"tokenizer.tokens: {model} has no token {shown(token)}.")
        return number

    def adopted(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with this vocabulary and its files."""
        arch = {**checkpoint.arch, "vocab_size": self.rows}
        files = {**checkpoint.files, **self.tokenizer.save_files()}
        return replace(checkpoint, arch=arch, files=files)


def _tensor(model: str, known: dict[str, Tensor], others: Sequence[Place]) -> Tensor:
    """A model's tensor, read once."""
    if model not in known:
        places = {place.where: place for place in others}
        if model not in places:
            raise MixwellError(f"tokenizer.tokens: {model} is none of the models of this merge.")
        known[model] = places[model].whole()
    return known[model]


def plan(file: File, sources: Mapping[str, Source], first: Source) -> Vocabulary | None:
    """The vocabulary that the file asks for; None where it asks for none."""
    if file.tokenizer_source is None and file.tokenizer is None:
        return None
    given = file.tokenizer if file.tokenizer is not None else {"source": file.tokenizer_source}
    options = from_dict(TokenizerOptions, given, "tokenizer")
    own = {name: _of(source, first) for name, source in sources.items()}
    ids = {name: _ids(tokenizer, sources[name]) for name, tokenizer in own.items()}
    made = _chosen(options.source, own, ids, first)
    rules = dict(options.tokens or {})
    made = with_tokens(made, [token for token in rules if token not in made.vocabulary])
    count = made.vocab_size
    multiple = options.pad_to_multiple_of or 1
    rows = -(-count // multiple) * multiple
    return Vocabulary(made, ids, rules, first.name, rows)


def _of(source: Source, first: Source) -> Tokenizer:
    """A model's tokenizer; the first model's where it has none."""
    files = source.checkpoint.files
    if MAIN not in files:
        files = first.checkpoint.files
    if MAIN not in files:
        raise MixwellError(f"{source.name} has no tokenizer.json, nor has {first.name}; leave tokenizer out.")
    return Tokenizer.from_files(files)


def _ids(tokenizer: Tokenizer, source: Source) -> dict[str, int]:
    """Token -> row, of those that the model has rows for."""
    size = int(source.checkpoint.arch["vocab_size"])
    return {token: number for token, number in tokenizer.vocabulary.items() if number < size}


def _chosen(source: Any, own: Mapping[str, Tokenizer], ids: Mapping[str, Mapping[str, int]],
            first: Source) -> Tokenizer:
    """The first model's tokenizer, a named model's, or the first's with all other models' tokens added to it."""
    if source == "base":
        return own[first.name]
    if source != "union":
        name = reference(source)
        if name not in own:
            raise MixwellError(f"tokenizer: {name} is none of the models of this merge; expected union, base, or one.")
        return own[name]
    base = own[first.name]
    known = dict.fromkeys(base.vocabulary)
    added = []
    for name in own:
        by_number = sorted(ids[name], key=ids[name].__getitem__)
        new = [token for token in by_number if token not in known]
        known |= dict.fromkeys(new)
        added += new
    return with_tokens(base, added)


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further tokens behind its own, in their order, none of them special."""
    if not tokens:
        return tokenizer
    files = tokenizer.save_files()
    main = layout.keys(files[MAIN], MAIN)
    start = tokenizer.vocab_size
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    entries = [{"id": start + place, "content": token, **plain} for place, token in enumerate(tokens)]
    main = {**main, "added_tokens": [*main.get("added_tokens", []), *entries]}
    return Tokenizer.from_files({**files, MAIN: layout.text(main)})


def template(asked: str | None, sources: Sequence[Source]) -> dict[str, bytes] | None:
    """The file of the chat template that a merge asks for: the models' commonest (auto), or Jinja text."""
    if asked is None:
        return None
    if asked != "auto":
        if "{" not in asked:
            raise MixwellError(f"chat_template: {shown(asked)} is a name; expected auto or the text of a template.")
        return {layout.TEMPLATE: asked.encode()}
    found = [layout.chat_template(source.checkpoint.files) for source in sources]
    counts = collections.Counter(text.strip() for text in found if text)
    if not counts:
        return None
    ((commonest, _),) = counts.most_common(1)
    return {layout.TEMPLATE: commonest.encode()}
