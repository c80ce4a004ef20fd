"""A merge of weights, tensor by tensor: models are looked at lazily, and each tensor of the result is made on demand.

A rule is a function `(tensors, base, config, generator) -> Tensor` of what stands in one place of all models, in
float32 or better. Rules marked `elementwise` are applied to pieces that a processor's cache holds, so that a merge of
any number of models holds one tensor and its pieces; where they are marked `surveys`, too, `survey` of their module
looks at whole tensors first, one model after the other. Other rules see whole tensors.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.formats.declared import FLOATING, Form, Fresh
from mixwell.merge.overview import Parts, Pieces
from mixwell.merge.reading import Place, Wholes, piece_entries


@dataclass(frozen=True)
class Rule:
    """A method of merging weights, with what it declares."""

    entry: registry.Entry
    called: str = ""  # what the user called it: a row of the method, ties say; default the method's own name

    @property
    def name(self) -> str:
        """What errors call it."""
        short = self.called.removeprefix("merge.")
        return f"merge.{short}" if short else self.entry.name

    def check(self, count: int, has_base: bool) -> None:
        """Raise `MixwellError` where the method takes another number of models, or needs a base, or takes none."""
        name, tags = self.name, self.entry.tags
        allowed = self.entry.module().MODELS
        if count not in allowed:
            least, most = allowed.start, allowed.stop - 1
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise MixwellError(f"{name}: {count} models beside the base; expected {expected}.")
        if "base" in tags and not has_base:
            raise MixwellError(f"{name} merges what models learned beyond a base; name the model that they were tuned "
                               "from (--base FOLDER; base: in a recipe, base= in Python).")
        if has_base and tags.isdisjoint(("base", "optional-base")):
            raise MixwellError(f"{name} takes no base; leave it out, or give it as one of the models.")

    @property
    def elementwise(self) -> bool:
        """Whether pieces may be merged apart from each other."""
        return "elementwise" in self.entry.tags

    @property
    def surveys(self) -> bool:
        """Whether whole tensors are looked at before their pieces are merged."""
        return "surveys" in self.entry.tags

    @property
    def overviews(self) -> bool:
        """Whether all tensors of the models are looked at before one is merged."""
        return "overviews" in self.entry.tags

    def overview(self, pieces: Pieces, count: int, config: Any) -> Any:
        """What the rule has to know of whole models."""
        return self.entry.module().overview(pieces, count, config)

    def survey(self, tensors: Sequence[Tensor], base: Tensor | None, config: Any, draws: torch.Generator) -> Any:
        """What the rule has to know of whole tensors."""
        return self.entry.module().survey(tensors, base, config, draws)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None, config: Any, draws: torch.Generator,
                 known: Any = None) -> Tensor:
        """The merged tensor, or piece."""
        extra = {} if known is None else {"known": known}
        return self.entry.load()(tensors, base, config, draws, **extra)


class Job(NamedTuple):
    """How one tensor of the result is made."""

    rule: Rule
    config: Any
    places: tuple[Place, ...]  # where the models' tensors lie
    base: Place | None
    form: Form  # of the result


def planned(name: str, rule: Rule, config: Any, places: Sequence[Place], base: Place | None,
            dtype: torch.dtype | None = None) -> Job:
    """How the tensor `name` of the result is made, in the type of the first place's or in `dtype`.

    Places of other shapes, of other types where `dtype` is not named, or of no floating ones raise `MixwellError`.
    """
    everyone = places if base is None else [*places, base]
    form = agreed(name, everyone, dtype)
    return Job(rule, config, tuple(places), base, form)


def agreed(name: str, places: Sequence[Place], dtype: torch.dtype | None = None) -> Form:
    """Type and shape of what is merged of these places; raises as `planned` does."""
    first = places[0]
    for place in places:
        _check_forms(name, first, place, any_type=dtype is not None)
    found = first.form
    return found if dtype is None else found._replace(dtype=dtype)


def _check_forms(name: str, first: Place, other: Place, any_type: bool) -> None:
    mine, theirs = first.form, other.form
    if theirs.dtype not in FLOATING:
        raise MixwellError(f"{other.where}: {name} is {theirs}; merges take floating weights. Merge first and quantise "
                           "last.")
    of_one_type = any_type or mine.dtype == theirs.dtype
    if mine.shape != theirs.shape or not of_one_type:
        raise MixwellError(f"{name} is {mine} in {first.where} and {theirs} in {other.where}; expected models of one "
                           "shape and type (dtype: float32, say, takes several types).")


class Merged(Fresh):
    """The tensors of a merge by name, each made when it is asked for. seed: of rules that draw."""

    def __init__(self, jobs: Mapping[str, Job], seed: int = 0) -> None:
        super().__init__(jobs)
        self._jobs, self._seed = jobs, seed

    @functools.cached_property
    def _overview(self) -> Any:
        """What the rule has to know of all tensors, where it is one rule that asks for it."""
        first = next(iter(self._jobs.values()))
        if not first.rule.overviews:
            return None
        return first.rule.overview(self._all_pieces, len(first.places), first.config)

    def _all_pieces(self) -> Iterator[Parts]:
        for job in self._jobs.values():
            yield from _parts(job)

    def __getitem__(self, name: str) -> Tensor:
        form = self._jobs[name].form
        made = torch.empty(form.shape, dtype=form.dtype)
        room = made.view(-1)
        start = 0
        for piece in self.pieces(name):
            end = start + piece.numel()
            room[start:end] = piece
            start = end
        return made

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's entries in order, as many at a time as a checksum of it takes; each piece is lost to the next."""
        job = self._jobs[name]
        draws = generator(self._seed, job.rule.entry.name, name)
        with in_words(f"{job.rule.name}, {name}"):
            if _divides(job):
                made = _pieced(job, draws, self._overview)
            else:
                made = iter([_whole(job, draws).view(-1)])
            yield from _regrouped(made, piece_entries(job.form))

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without making it."""
        return self._jobs[name].form


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """What a method says of its options or of numbers becomes a `MixwellError` that names it."""
    try:
        yield
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{where}: {error}.") from error


def _divides(job: Job) -> bool:
    """Whether the rule takes pieces, and all models' tensors come in pieces of one length."""
    places = [*job.places]
    if job.base is not None:
        places.append(job.base)
    lengths = {place.entries for place in places}
    return job.rule.elementwise and len(lengths) == 1


def _whole(job: Job, draws: torch.Generator) -> Tensor:
    """The rule applied to whole tensors."""
    base = None if job.base is None else job.base.whole()
    tensors = Wholes(job.places)
    merged = job.rule(tensors, base, job.config, draws)
    stored = merged.to(job.form.dtype)
    return stored.contiguous().view(job.form.shape)


def _pieced(job: Job, draws: torch.Generator, overview: Any) -> Iterator[Tensor]:
    """What the rule makes of each piece, in the result's type."""
    known = _surveyed(job, draws) if overview is None else overview
    for parts, base in _parts(job):
        piece = job.rule(parts, base, job.config, draws, known)
        yield piece.to(job.form.dtype)


def _regrouped(pieces: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """The same entries, `length` at a time: types of other widths come in other lengths."""
    kept: list[Tensor] = []
    for piece in pieces:
        for part in piece.split(length):
            if not kept and len(part) == length:
                yield part
                continue
            kept.append(part.clone())
            if sum(map(len, kept)) == length:
                yield torch.cat(kept)
                kept = []
    if kept:
        yield torch.cat(kept)


def _parts(job: Job) -> Iterator[Parts]:
    """The models' pieces and the base's, in step; checksums are compared behind the last."""
    bases: Iterator[Any] = itertools.repeat(None)
    if job.base is not None:
        bases = job.base.pieces()
    readers = [place.pieces() for place in job.places]
    for parts in zip(*readers, strict=True):
        yield parts, next(bases)
    next(bases, None)


def _surveyed(job: Job, draws: torch.Generator) -> Any:
    """What the rule has to know of whole tensors, which are let go of before pieces of them are merged."""
    if not job.rule.surveys:
        return None
    base = None if job.base is None else job.base.whole()
    tensors = Wholes(job.places)
    return job.rule.survey(tensors, base, job.config, draws)


class Model(NamedTuple):
    """One model of a merge."""

    tensors: Mapping[str, Tensor]
    name: str  # what errors call it


def same_names(models: Sequence[Model]) -> list[str]:
    """The names that all models have, in the first one's order; others raise `MixwellError`."""
    first, *others = models
    for other in others:
        check_names(first, other)
    return list(first.tensors)


def check_names(first: Model, other: Model) -> None:
    """Raise where a model lacks a tensor that the other has."""
    for one, two in ((first, other), (other, first)):
        lacking = [name for name in one.tensors if name not in two.tensors]
        if lacking:
            name, *rest = lacking
            more = f" and {len(rest)} more" if rest else ""
            raise MixwellError(f"{two.name} lacks {name}{more}, which {one.name} has; expected models of one "
                               "architecture.")


def merged(name: str, models: Sequence[Model], base: Model | None, config: Any, seed: int = 0,
           dtype: torch.dtype | None = None, called: str = "") -> Merged:
    """The merge of all tensors of `models` by the method `name`, in one setting; `called` in errors, where given.

    dtype: of the result, whose models may then be of several; None: that of the models. Other names, shapes, types, or
    another number of models than the method takes raise `MixwellError`; numbers that are not finite do so when they are
    read.
    """
    rule = Rule(registry.find(name, within="merge"), called or name)
    rule.check(len(models), base is not None)
    everyone = [*models]
    if base is not None:
        everyone.append(base)
    jobs = {}
    for tensor in same_names(everyone):
        places = places_of(models, tensor)
        ground = None if base is None else _place(base, tensor)
        jobs[tensor] = planned(tensor, rule, config, places, ground, dtype)
    return Merged(jobs, seed)


def places_of(models: Iterable[Model], tensor: str) -> list[Place]:
    """Where each model has a tensor of that name."""
    return [_place(model, tensor) for model in models]


def _place(model: Model, tensor: str) -> Place:
    return Place(model.tensors, tensor, model.name)
