"""Adapting: a frozen model with an adapter beside it that is trained, and merged into the model or kept beside it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters import files
from mixwell.adapters.attached import Attached, attach
from mixwell.adapters.sizing import sized
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, TrainingError, shown, suggest
from mixwell.core.machine import hold_memory
from mixwell.core.rng import generator
from mixwell.formats.tensors import size_bytes
from mixwell.kernels.packing import CHANGES
from mixwell.lm import adapted, receipt
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.config import BUDGETS
from mixwell.lm.training.loop import METRICS, TrainResult, train
from mixwell.lm.training.sampler import Sampler
from mixwell.run.stages._parts import Job, read_model
from mixwell.run.stages.convert import held_out
from mixwell.run.stages.models import describe
from mixwell.run.stages.train import Training, clear_damage, cut, draw_seed, parse_train, repeated, told, trainings

ROOM, MATRIX = "adapters", "matrix"
FOLDER = folders.BESIDE  # of the adapter by itself, beside the model that it was merged into


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """A method of `mixwell list adapters` with its options, where it stands, and how it is trained."""

    method: str  # in full
    options: Mapping[str, Any]  # of the method
    training: Training
    targets: tuple[str, ...] | None = None  # patterns of weights; None = the method's own
    trained: tuple[str, ...] = ()  # patterns of parameters that are trained as they are, such as norms
    parameters: int | None = None  # trained numbers that the rank is chosen for; None = the rank stands
    rates: tuple[float, ...] = ()  # learning rates that are tried; the best by its loss in training is kept
    merged: bool = True  # whether the stage's model has the adapter in its weights, or beside them

    @property
    def config(self) -> Any:
        """The method's config."""
        own = registry.find(self.method).module().Config
        return from_dict(own, self.options, self.method)

    def settled(self, before: Checkpoint) -> Adaptation:
        """The same with the rank that its size asks for beside a base."""
        if self.parameters is None:
            return self
        method = registry.find(self.method).load()
        model = LanguageModel.from_checkpoint(before)
        config = sized(method, model, self.targets, self.config, self.parameters, self.trained)
        return replace(self, options=to_dict(config), parameters=None)

    def attach(self, model: LanguageModel, seed: int, begin: bool = True, **known: Any) -> Attached:
        """Put the adapter, its size settled, beside a model, at its start or (not `begin`) for tensors that are loaded.

        known: what else `adapters.attached.attach` may know, such as the text that a method looks at.
        """
        assert self.parameters is None
        method = registry.find(self.method).load()
        draws = generator(seed, self.method)
        return attach(method, model, self.targets, self.config, draws, trained=self.trained, begin=begin, **known)


def parse_adapt(options: Mapping[str, Any], where: str) -> Adaptation:
    """Sort the options into the method's and those of the training; check both now."""
    rest = dict(options)
    entry = _entry(rest.pop("method", None), where)
    targets = _patterns(rest.pop("targets", None), f"{where}.targets")
    trained = _patterns(rest.pop("trained", ()), f"{where}.trained")
    parameters = _size(rest.pop("parameters", None), f"{where}.parameters")
    rates = _rates(rest, where)
    merged = _is_merged(rest.pop("merged", None), entry, f"{where}.merged")
    names = [option.name for option in fields(entry.module().Config)]
    own = {name: rest.pop(name) for name in names if name in rest}
    _check_keys(rest, ["targets", "trained", "parameters", "rates", "merged", *names], where)
    training = parse_train(rest, where)
    if isinstance(training.weights, str):
        raise MixwellError(f"{where}.weights: an adaptation takes a share for each domain, not a stage's choice.")
    made = Adaptation(method=entry.name, options=own, training=training, targets=targets, trained=trained or (),
                      parameters=parameters, rates=rates, merged=merged)
    from_dict(entry.module().Config, own, where)
    return made


def _check_keys(rest: Mapping[str, Any], own: Sequence[str], where: str) -> None:
    """A key that is neither the method's nor the training's is told with the keys of both."""
    training = [option.name for option in fields(Training)]
    unknown = [key for key in rest if key not in training]
    if unknown:
        known = [*own, *training]
        hint = suggest(unknown[0], known)
        raise MixwellError(f"{where}: unknown key {shown(unknown[0])}.{hint} Known keys: {', '.join(known)}.")


def _entry(name: Any, where: str) -> registry.Entry:
    if not isinstance(name, str):
        own = [entry.name for entry in registry.family(ROOM) if entry.family == ROOM]
        known = ", ".join(full.rpartition(".")[2] for full in own)
        raise MixwellError(f"{where}: name a method, such as `adapt: lora`. Known: {known}.")
    entry = registry.find(name, within=ROOM)
    if entry.family != ROOM:
        raise MixwellError(f"{where}: {entry.name} is a way to go about adapting and no adapter; call it in "
                           "Python.")
    return entry


def _size(given: Any, where: str) -> int | None:
    if given is None:
        return None
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not whole or given < 1:
        raise MixwellError(f"{where}: expected a whole number above 0, such as 20k, got {shown(given)}.")
    return given


def _rates(rest: dict[str, Any], where: str) -> tuple[float, ...]:
    """The learning rates to try, taken out of the options."""
    given = rest.pop("rates", None)
    if given is None:
        return ()
    if "lr" in rest:
        raise MixwellError(f"{where}: lr and rates came; give one rate, or those to try.")
    found = from_dict(_Rates, {"rates": given}, where).rates
    wrong = [rate for rate in found if not 0 < rate < math.inf]
    if wrong or not found or len(set(found)) < len(found):
        raise MixwellError(f"{where}.rates: expected different numbers above 0, such as [1e-3, 3e-3], got "
                           f"{shown(given)}.")
    return found


@dataclass(frozen=True, kw_only=True)
class _Rates:
    rates: tuple[float, ...]


def _is_merged(given: Any, entry: registry.Entry, where: str) -> bool:
    """Whether to merge: as said, else where the change is a matrix."""
    can = MATRIX in entry.tags
    if given is None:
        return can
    if not isinstance(given, bool):
        raise MixwellError(f"{where}: expected true or false, got {shown(given)}.")
    if given and not can:
        raise MixwellError(f"{where}: {entry.name} depends on what comes in, so it cannot be merged; leave this out, "
                           "and the stage's model keeps the adapter beside it.")
    return given


def _patterns(given: Any, where: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not all(isinstance(one, str) for one in listed):
        raise MixwellError(f"{where}: expected a pattern of names, or a list of them, got {given!r}.")
    return tuple(listed)


def with_defaults(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an adaptation with the recipe's for trainings below them; a budget of its own wins.

    The learning rate of full training is no default here: an adapter wants another.
    """
    own_budget = any(name in options for name in BUDGETS)
    dropped = {"lr", "freeze", *(BUDGETS if own_budget else ())}
    kept = {name: value for name, value in defaults.items() if name not in dropped}
    return {**kept, **options}


def run_adapt(job: Job) -> dict[str, Any]:
    """Train the adapter in `job.work`, merge it or keep it beside, weigh the result, write it and the adapter."""
    hold_memory()
    stage = job.stage
    before = read_model(job)
    data = TokenData.open(job.inputs["tokens"] / "shards")
    adaptation = stage.config.settled(before)
    tried = _all_tried(job, adaptation, before, data)
    best = min(tried, key=lambda one: one.loss)
    done, config = best.done, best.config
    # anew: the training may have rounded the frozen weights; in float32: what merging rounds is told by the receipt
    anew = LanguageModel.from_checkpoint(before, "fp32")
    exact = adaptation.attach(anew, stage.seed, begin=False, held=best.tensors)
    exact.load_tensors(best.tensors)
    merges = adaptation.merged
    own = exact.tensors()
    facts = {"trained_parameters": exact.num_parameters, "merged": merges, "adapter_digest": files.digest(own),
             "adapter_bytes": size_bytes(own)}
    tokens_BT = held_out(data)
    if merges:
        left = _merged(job, before, exact, tokens_BT)
    else:
        left = _kept_beside(job, before, exact, tokens_BT, _labels(data, tokens_BT))
    facts |= left.facts | told(config.shares) | _told_rates(adaptation.rates, tried)
    record = job.record(tokens=done.tokens, ledger=done.ledger, draw_seed=config.seed, **facts)
    kept = replace(left.checkpoint, lineage=before.lineage, files=before.files)
    model = job.folder / "model"
    folders.write(kept.derive(record=record), model)
    if not merges:
        shutil.copytree(job.folder / FOLDER, model / folders.BESIDE)
    shutil.copyfile(best.folder / METRICS, job.folder / METRICS)
    there = {name: data.count(name, "train") for name in data.domains}
    damage = [notice for one in tried for notice in one.damage]
    notices = [*damage, *repeated(done.ledger, there), *cut(data, config, done.ledger)]
    return {**describe(anew), **facts, "tokens": done.tokens, "flops": done.flops, "seconds": done.seconds,
            "ledger": done.ledger, "final_loss": done.metrics[-1]["loss_nats"], "metrics": METRICS, "notices": notices}


def _windows(data: TokenData, config: Training, seed: int) -> Iterator[Tensor]:
    """Training text [B, T] for a method that looks at some before it starts."""
    sampler = Sampler(data, config.shares, config.batch_size, config.seq_len, seed)
    while True:
        yield sampler.batch().tokens_BT


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """A training at one rate: the adapter that came of it, and the mean loss of the second half of its steps."""

    config: Training
    folder: Path
    tensors: dict[str, Tensor]
    done: TrainResult
    loss: float
    damage: list[str]


def _all_tried(job: Job, adaptation: Adaptation, before: Checkpoint, data: TokenData) -> list[_Tried]:
    """The trainings that ended, one for each rate; a rate too large is left out as long as another one serves."""
    rates = adaptation.rates
    if not rates:
        return [_trained(job, adaptation, before, data, None)]
    found: list[_Tried] = []
    for number, rate in enumerate(rates, start=1):
        try:
            found.append(_trained(job, adaptation, before, data, rate))
        except TrainingError:
            if number == len(rates) and not found:
                raise
    return found


def _trained(job: Job, adaptation: Adaptation, before: Checkpoint, data: TokenData, rate: float | None) -> _Tried:
    """Train the adapter from its start, at a rate of those that are tried or (None) at the training's own."""
    seed = job.stage.seed
    text = _windows(data, adaptation.training, seed)
    beside = adaptation.attach(LanguageModel.from_checkpoint(before), seed, text=text)
    if adaptation.merged:
        _check_merges(beside)
    config = _training(adaptation.training, before, beside, seed)
    folder = job.work
    if rate is not None:
        config = replace(config, lr=rate)
        folder = folder / f"rate-{rate:g}"
        folder.mkdir(parents=True, exist_ok=True)
    damage = clear_damage(folder)
    done = train(beside.model, data, config, folder, weights=config.shares,
                 progress=lambda step, share, info: job.progress(share, f"loss {info['loss_nats']:.3f}"))
    own = {name: value.clone() for name, value in beside.tensors().items()}
    losses = [line["loss_nats"] for line in done.metrics]
    later = losses[len(losses) // 2 :]
    loss = math.fsum(later) / len(later)
    kept = replace(done, model=nn.Identity())  # else the base would be held once for each rate
    return _Tried(config=config, folder=folder, tensors=own, done=kept, loss=loss, damage=damage)


def _told_rates(rates: Sequence[float], tried: Sequence[_Tried]) -> dict[str, Any]:
    """What came of each rate that was to be tried; one that was too large has no loss."""
    if not rates:
        return {}
    ended = {one.config.lr: {"loss_nats": one.loss, "seconds": one.done.seconds} for one in tried}
    lines = [{"lr": rate, **ended.get(rate, {"loss_nats": None})} for rate in rates]
    best = min(tried, key=lambda one: one.loss)
    return {"rates": lines, "lr": best.config.lr}


@dataclass(frozen=True, kw_only=True)
class _Left:
    """What a stage leaves: the weights of its model, and what its record says of them."""

    checkpoint: Checkpoint
    facts: dict[str, Any]


def _merged(job: Job, before: Checkpoint, exact: Attached, tokens_BT: Tensor) -> _Left:
    """The adapter in its folder, and the model with it in the weights."""
    _save(job, exact)
    done = adapted.merge(exact, before, tokens_BT)
    after = done.checkpoint
    weighed = receipt.measure(before, after, tokens_BT, job.stage.method)
    told = weighed.to_dict()
    return _Left(checkpoint=after, facts={"merge_error": done.error, "receipt": told})


def _save(job: Job, there: Attached) -> Path:
    base = job.stage.inputs["model"]
    folder = job.folder / FOLDER
    return files.save(there, folder, base)


def _labels(data: TokenData, tokens_BT: Tensor) -> Tensor:
    """The domain of each of the windows that `held_out` gives, [B]."""
    rows = torch.arange(len(tokens_BT))
    return rows % len(data.domains)


def _kept_beside(job: Job, before: Checkpoint, exact: Attached, tokens_BT: Tensor, labels_B: Tensor) -> _Left:
    """The adapter in its folder, and the base as it is."""
    folder = _save(job, exact)
    method = job.stage.method

    def put(model: LanguageModel) -> None:
        files.load(folder, model, other_base=True)

    weighed = receipt.measure(before, before, tokens_BT, method, beside=put, labels_B=labels_B)
    told = weighed.to_dict()
    return _Left(checkpoint=before, facts={"receipt": told})


def _check_merges(there: Attached) -> None:
    """Refuse now what would be refused after the training: a quantised weight, say."""
    try:
        there.merge()
    except MixwellError as error:
        raise MixwellError(f"{error} `merged: false` keeps the adapter beside the model.") from error
    there.unmerge()


def _training(config: Training, before: Checkpoint, there: Attached, seed: int) -> Training:
    """The training with its draws; what the base remembers beside its weights (a router's bias) stays as it is."""
    parameters = {name for name, _ in there.model.named_parameters()}
    state = there.model.state_dict()
    own = [name for name in state if CHANGES not in name.split(".")]
    buffers = [name for name in own if name not in parameters]
    drawn = draw_seed(seed, trainings(before))
    frozen = *config.frozen, *buffers
    return replace(config, seed=drawn, freeze=frozen)
