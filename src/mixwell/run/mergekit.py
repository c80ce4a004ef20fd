"""mergekit's merge files, run as they are: `mixwell merge CONFIG.yaml --out DIR`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import floating
from mixwell.lm import folder as folders
from mixwell.lm.hf.writing import comparable
from mixwell.merge.merging import Job, Merged, Rule, planned
from mixwell.merge.naming import method_of
from mixwell.merge.reading import Place
from mixwell.merge.settings import Scope, looked_up
from mixwell.report.targets import check_folder
from mixwell.run import mergekit_tokens
from mixwell.run.mergekit_file import IGNORED, METHODS, OURS, File, Module, Part, Slice, read, reference
from mixwell.run.merging import CARD, Source, card, check_alike, joined
from mixwell.run.paths import find_model

CONFIG_COPY = "mergekit_config.yml"
AHEAD = ("embed", "wte", "wpe")  # parts of names of what lies before the layers
_LAYER = re.compile(r"(?P<before>.*?(?:layers|h|blocks)\.)(?P<layer>\d+)(?P<rest>\..*)")


class Where(NamedTuple):
    """A place in the result: which slice decides it, how deep it lies, and which layers it is made of."""

    slice: Slice
    t: float  # 0 to 1 within the slice
    layers: tuple[int | None, ...]  # of each source


def merge_file(path: str | Path, out: str | Path, seed: int = 0) -> Checkpoint:
    """Merge as a file of mergekit's says, write the folder `out`, and return the checkpoint that lies there.

    Models, shapes, types or tokens that do not go together, and what is not served, raise `MixwellError`; nothing is
    left then.
    """
    path = Path(path)
    file = read(path)
    check_folder(out)
    merge = FileMerge(file, seed)
    text = path.read_text(encoding="utf-8")
    names = list(merge.sources)
    about = card(Path(out).name, text, names, merge.base)
    after = merge.checkpoint()
    folders.write(after, out, notes={CARD: about, CONFIG_COPY: text})
    return folders.read(out)


class FileMerge:
    """A merge file with the models that it names."""

    def __init__(self, file: File, seed: int) -> None:
        self.file, self.seed = file, seed
        named = file.out_dtype or file.dtype
        self.dtype = None if named is None else floating(named, "dtype")
        self.base = None if file.base_model is None else reference(file.base_model)
        self.module = file.module
        self.sources = {name: _source(name) for name in self._names()}
        first = self.base or next(iter(self.sources))
        self.first = self.sources[first]
        self.vocabulary = mergekit_tokens.plan(file, self.sources, self.first)
        self._check()
        self.model_type = folders.folder_type(self.first.checkpoint)
        self.views = {name: folders.unread_tensors(source.checkpoint, self.model_type)
                      for name, source in self.sources.items()}
        self.slices = _with_slices(self.module, self.base, self.sources)
        self.entry, self.row = method_of(file.merge_method)
        self.takes = METHODS[file.merge_method]

    def _names(self) -> list[str]:
        """Of all models, in the order in which the file has them."""
        named = [part.model for part in self.module.models]
        bases = [self.file.base_model]
        for place in self.module.slices:
            named += [part.model for part in place.sources]
            bases.append(place.base_model)
        named += [base for base in bases if base is not None]
        names = [reference(model) for model in named]
        return list(dict.fromkeys(names))

    def _check(self) -> None:
        """Models compute alike, their depth and their vocabulary apart where the file sees to them."""
        sources = list(self.sources.values())
        if not self.module.slices and self.vocabulary is None:
            check_alike(sources)
            return
        for source in sources:
            _check_layers_apart(self.first, source, self.vocabulary is not None, bool(self.module.slices))

    def checkpoint(self) -> Checkpoint:
        """The result, its tensors made when they are asked for."""
        places = dict(self._places())
        jobs = {name: self._job(name, where) for name, where in places.items()}
        like = self._like()
        tensors = Merged(jobs, self.seed)
        made = folders.from_written(tensors, like, self.model_type, "the merge")
        return made.derive(record=self._record())

    def _record(self) -> dict[str, Any]:
        sources = list(self.sources.values())
        found = joined(sources, self.first)
        found["id"] = "merge"
        found["method"] = self.entry.name
        found["merge_method"] = self.file.merge_method
        return {**found, "seed": self.seed, "base": self.base}

    def _like(self) -> Checkpoint:
        """The first model with the depth, the tokens and the chat template of the result."""
        arch = _deepened(self.first.checkpoint, self.slices, self.sources)
        like = self.first.checkpoint.derive(arch=arch)
        if self.vocabulary is not None:
            like = self.vocabulary.adopted(like)
        sources = list(self.sources.values())
        template = mergekit_tokens.template(self.file.chat_template, sources)
        if template is None:
            return like
        files = {**like.files, **template}
        return replace(like, files=files)

    def _places(self) -> Iterator[tuple[str, Where]]:
        """Every tensor of the result: those before the layers, the layers, those behind them."""
        names = list(self.views[self.first.name])
        outside = [name for name in names if _layer_of(name) is None]
        for name in outside:
            ahead = any(part in name for part in AHEAD)
            slice_ = self.slices[0 if ahead else -1]
            nowhere = (None,) * len(slice_.sources)
            yield name, Where(slice_, 0.0, nowhere)
        depth = 0
        for slice_ in self.slices:
            starts, length = _span(slice_)
            for step in range(length):
                t = step / (length - 1) if length > 1 else 1.0
                layers = tuple(start + step for start in starts)
                for name in self._inside(slice_, layers[0]):
                    yield _relayered(name, depth), Where(slice_, t, layers)
                depth += 1

    def _inside(self, slice_: Slice, layer: int) -> list[str]:
        """Names of the tensors of a layer of a slice's first source."""
        model = reference(slice_.sources[0].model)
        view = self.views[model]
        found = [name for name in view if _layer_of(name) == layer]
        if not found:
            raise MixwellError(f"{model} has no layer {layer}; check layer_range.")
        return found

    def _job(self, name: str, where: Where) -> Job:
        """How a tensor is made."""
        parts = self._parts(name, where)
        named = where.slice.base_model
        base = self.base if named is None else reference(named)
        models, ground = self._sorted(parts, base)
        rule = Rule(self.entry, self.file.merge_method)
        rule.check(len(models), ground is not None)
        options = self._options(name, where, [part for part, _ in models])
        place = f"{self.file.merge_method}, {name}"
        config = from_dict(self.entry.module().Config, self.row | options, place)
        places = [place for _, place in models]
        return planned(name, rule, config, places, ground, self.dtype)

    def _parts(self, name: str, where: Where) -> list[tuple[Part, Place]]:
        """The sources of a tensor, and where each has it."""
        parts = where.slice.sources
        places = []
        for part, layer in zip(parts, where.layers):
            model = reference(part.model)
            places.append(_place(self.views[model], name, layer, model))
        if self.vocabulary is not None:
            others = list(places)
            places = [self.vocabulary.placed(name, place, others) for place in others]
        return list(zip(parts, places))

    def _sorted(self, parts: list[tuple[Part, Place]],
                base: str | None) -> tuple[list[tuple[Part, Place]], Place | None]:
        """The models that are merged, and the base apart where the method has one."""
        kind = self.takes.base
        if kind == "none" or (kind == "optional" and base is None):
            return parts, None
        if base is None:
            raise MixwellError(f"{self.file.merge_method} needs base_model.")
        names = [reference(part.model) for part, _ in parts]
        if base not in names:
            raise MixwellError(f"base_model {base} is none of the sources of a slice; list it there.")
        rest = list(parts)
        ground = rest.pop(names.index(base))
        if kind == "first":
            return [ground, *rest], None
        _, place = ground
        return rest, place

    def _options(self, name: str, where: Where, models: Sequence[Part]) -> dict[str, Any]:
        """The method's options for a tensor."""
        scopes: list[Scope] = [where.slice.parameters, self.module.parameters, self.file.parameters]
        found: dict[str, Any] = {}
        for parameter in self.takes.shared:
            value = looked_up(parameter, scopes, name, where.t)
            self._put(found, parameter, value, name)
        for parameter in self.takes.own:
            values = [looked_up(parameter, [part.parameters, *scopes], name, where.t) for part in models]
            self._put(found, parameter, self._together(parameter, values, name), name)
        return found

    def _together(self, parameter: str, values: list[Any], name: str) -> Any:
        """One value a model, the method's own where a model has none; a single one for a method of one model."""
        given = [value for value in values if value is not None]
        if not given or self.entry.name == "merge.passthrough":
            return values[0]
        if len(given) < len(values):
            if parameter in self.takes.required:
                return None
            usual = getattr(self.entry.module().Config, parameter)
            values = [usual if value is None else value for value in values]
        return values

    def _put(self, found: dict[str, Any], parameter: str, value: Any, name: str) -> None:
        if value is None and parameter in self.takes.required:
            raise MixwellError(f"{self.file.merge_method} needs {parameter} for {name}; give it in parameters.")
        if value is None or parameter in IGNORED:
            return
        ours = OURS.get(parameter, parameter)
        found[ours] = value


def _source(name: str) -> Source:
    return Source(folders.read(find_model(name)), name)


def _with_slices(module: Module, base: str | None, sources: Mapping[str, Source]) -> tuple[Slice, ...]:
    """The module's slices; whole models are one, the base among them."""
    if module.slices:
        return tuple(_with_ranges(place) for place in module.slices)
    parts = list(module.models)
    if base is not None and all(reference(part.model) != base for part in parts):
        parts.append(Part(model=base))
    whole = []
    for part in parts:
        layers = int(sources[reference(part.model)].checkpoint.arch["num_layers"])
        whole.append(replace(part, layer_range=(0, layers)))
    return (Slice(sources=tuple(whole)),)


def _with_ranges(place: Slice) -> Slice:
    """Raise where a slice's sources give no layers, or unequally many."""
    if not place.sources or any(part.layer_range is None for part in place.sources):
        raise MixwellError("slices: every source needs layer_range, such as [0, 8].")
    _span(place)
    return place


def _span(place: Slice) -> tuple[list[int], int]:
    """(first layer of each source, number of layers)."""
    ranges = [part.layer_range for part in place.sources if part.layer_range is not None]
    lengths = [end - start for start, end in ranges]
    length = lengths[0]
    if length < 1 or lengths != [length] * len(lengths):
        raise MixwellError(f"slices: the sources have {lengths} layers; expected as many of each, 1 or more.")
    starts = [start for start, _ in ranges]
    return starts, length


def _layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, where it does."""
    found = _LAYER.fullmatch(name)
    return None if found is None else int(found["layer"])


def _relayered(name: str, layer: int) -> str:
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    before, rest = found["before"], found["rest"]
    return f"{before}{layer}{rest}"


def _place(view: Mapping[str, Any], name: str, layer: int | None, where: str) -> Place:
    """Where a source has the tensor of that name, in the layer of its own."""
    own = name if layer is None else _relayered(name, layer)
    if own not in view:
        raise MixwellError(f"{where} lacks {own}; expected models of one architecture.")
    return Place(view, own, where)


def _check_layers_apart(first: Source, other: Source, tokens: bool, layers: bool) -> None:
    """Raise where two models differ in more than the file sees to."""
    mine = _plain(first, tokens, layers)
    theirs = _plain(other, tokens, layers)
    if mine == theirs:
        return
    what = folders.difference(theirs, mine)
    raise MixwellError(f"{other.name} is another model than {first.name}: {what}.")


def _plain(source: Source, tokens: bool, layers: bool) -> dict[str, Any]:
    plain = comparable(source.checkpoint.arch)
    if tokens:
        plain.pop("vocab_size")
    if layers:
        for key in ("num_layers", "channel_mixer", "sequence_mixer"):
            plain.pop(key)
    return plain


def _deepened(first: Checkpoint, slices: Sequence[Slice], sources: Mapping[str, Source]) -> dict[str, Any]:
    """The architecture with the layers that the slices take, each as its first source has it."""
    sequence, channel = [], []
    for place in slices:
        arch = sources[reference(place.sources[0].model)].checkpoint.arch
        (start, *_), length = _span(place)
        for layer in range(start, start + length):
            channel.append(_listed(channel_mixers(arch), layer))
            sequence.append(_listed(_sequence_mixers(arch), layer))
    arch = {**first.arch, "num_layers": len(channel)}
    same = all(spec == sequence[0] for spec in sequence)
    arch["sequence_mixer"] = sequence[0] if same else sequence
    return {**with_channel_mixers(arch, channel), "architecture": first.arch["architecture"]}


def _listed(specs: Sequence[Any], layer: int) -> Any:
    if layer >= len(specs) or layer < 0:
        raise MixwellError(f"layer_range names layer {layer}; the model has {len(specs)}.")
    return specs[layer]


def _sequence_mixers(arch: Mapping[str, Any]) -> list[Any]:
    spec = arch["sequence_mixer"]
    return [spec] * int(arch["num_layers"]) if isinstance(spec, Mapping) else list(spec)
