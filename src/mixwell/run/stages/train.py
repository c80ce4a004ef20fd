"""The training stage: a model, token shards and a budget give a trained model, its metrics and its ledger."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixwell.core import disk, units
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.core.machine import hold_memory
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.evaluate import evaluate
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.documents import count_cut
from mixwell.lm.training.loop import METRICS, STATE, DamagedState, TrainConfig, saved, train
from mixwell.parallel.launch import Crew
from mixwell.parallel.team import Team
from mixwell.run.stages._parts import Job, model_folder, read_model
from mixwell.run.stages.evaluate import EvaluateConfig
from mixwell.run.stages.models import describe

FEW_EPOCHS = 4.0  # up to here repeated text is worth nearly as much as new text (Muennighoff et al., 2023)


@dataclass(frozen=True, kw_only=True)
class Training(TrainConfig):
    """The trainer's options and the mixture of domains."""

    # share of each domain, or the id of a `mix` stage that chose them; default: by its tokens
    weights: Mapping[str, float] | str | None = None

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Weights as far as they are known before the stages above ran."""
        return None if isinstance(self.weights, str) else self.weights


def parse_train(options: Mapping[str, Any], where: str) -> Training:
    """The stage's config from plain data; the type to compute in is settled here, since it decides the result."""
    return from_dict(Training, options, where).for_device("cpu")


def draw_seed(seed: int, depth: int) -> int:
    """Seed of the data order of the `depth`-th training in a row.

    Siblings share it, so that they see the same batches; a stage that trains on draws others than its parent did.
    """
    drawn = digest(["train", seed, depth])
    return int(drawn[:8], 16)


def trainings(model: Checkpoint) -> int:
    """How many trainings it has behind it, those of adapters among them."""
    stages = [record.get("stage") for record in model.lineage]
    return sum(map(stages.count, ("train", "adapt")))


def run_train(job: Job) -> dict[str, Any]:
    """Train in `job.work`, which outlives a kill; leave the model and the metrics in the stage's folder."""
    hold_memory()
    before = read_model(job)
    config = _settled(job, before)
    weights = config.shares
    model = LanguageModel.from_checkpoint(before)
    data = TokenData.open(job.inputs["tokens"] / "shards")
    damage = clear_damage(job.work)
    team = None
    if job.crew is not None:
        order = Together.of(job, config)
        job.crew.order(order.plain())
        team = job.crew.team.fitting(model)
    done = train(model, data, config, job.work, weights=weights, team=team,
                 progress=lambda step, share, info: job.progress(share, f"loss {info['loss_nats']:.3f}"))
    after = model.to_checkpoint()
    planned = told(weights)
    record = job.record(tokens=done.tokens, ledger=done.ledger, draw_seed=config.seed, **planned)
    folders.write(replace(after, lineage=before.lineage, files=before.files).derive(record=record),
                     job.folder / "model")
    shutil.copyfile(job.work / METRICS, job.folder / METRICS)
    return {**describe(model), **planned, "tokens": done.tokens, "flops": done.flops, "seconds": done.seconds,
            "ledger": done.ledger, "final_loss": done.metrics[-1]["loss_nats"], "metrics": METRICS,
            "notices": [*damage, *repeated(done.ledger, {name: data.count(name, "train") for name in data.domains}),
                        *cut(data, config, done.ledger)]}


def run_partly(job: Job, share: float, weighed: EvaluateConfig) -> dict[str, Any]:
    """Train up to a share of the budget in `job.work`, from where `run_train` goes on; how good the model is there."""
    hold_memory()
    before = read_model(job)
    config = _settled(job, before)
    model = LanguageModel.from_checkpoint(before)
    data = TokenData.open(job.inputs["tokens"] / "shards")
    clear_damage(job.work)
    done = train(model, data, config, job.work, weights=config.shares, until=share,
                 progress=lambda step, share, info: job.progress(share, f"loss {info['loss_nats']:.3f}"))
    found = evaluate(model, data, max_tokens=weighed.max_tokens, batch_size=weighed.batch_size,
                     seq_len=weighed.seq_len)
    return {"tokens": done.tokens, "mean": found.mean}


def _settled(job: Job, before: Checkpoint) -> Training:
    """The stage's config with the seed of its draws, and with weights as far as they were chosen by another stage."""
    seed = draw_seed(job.stage.seed, trainings(before))
    return replace(job.stage.config, seed=seed, weights=_weights(job))


def _weights(job: Job) -> Mapping[str, float] | None:
    """Share of each domain, as the recipe or the stage that it names says."""
    config = job.stage.config
    if "mixture" not in job.inputs:
        return config.shares
    chosen: dict[str, float] = job.result("mixture")["weights"]
    return chosen


def told(weights: Mapping[str, float] | None) -> dict[str, Any]:
    """What a record says of the weights given; nothing where domains are read by their tokens."""
    return {} if weights is None else {"weights": dict(weights)}


@dataclass(frozen=True, kw_only=True)
class Together:
    """A training as the processes that help with it hear of it."""

    model: str  # folder
    shards: str  # folder
    work: str  # folder
    stage: str  # id
    config: Training

    @classmethod
    def of(cls, job: Job, config: Training) -> Together:
        """The order that a stage gives."""
        model = model_folder(job.inputs["model"])
        shards = job.inputs["tokens"] / "shards"
        return cls(model=str(model.resolve()), shards=str(shards.resolve()), work=str(job.work.resolve()),
                   stage=job.stage.id, config=config)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return to_dict(self)

    def train(self, team: Team) -> None:
        """Train beside the process that gave the order, which keeps what comes of it."""
        model = LanguageModel.from_checkpoint(folders.read(Path(self.model)))
        data = TokenData.open(Path(self.shards))
        own = team.fitting(model)
        train(model, data, self.config, Path(self.work), weights=self.config.shares, team=own)


def follow(crew: Crew) -> None:
    """Do what the first process orders until it lets go."""
    while (order := crew.wait()) is not None:
        together = from_dict(Together, order)
        try:
            together.train(crew.team)
        except MixwellError as error:
            raise type(error)(f"stage {together.stage}: {error}") from error


def clear_damage(work: Path) -> list[str]:
    """Take a training's state away where it is not as it was written, so that it starts afresh; what is to be said."""
    try:
        saved(work)
    except DamagedState as damage:
        disk.remove(work / STATE)
        return [f"The training was started afresh: {damage.__cause__}"]
    return []


def cut(data: TokenData, config: TrainConfig, read: Mapping[str, float]) -> list[str]:
    """A sentence on each domain that was read whose documents are kept apart and do not all fit into a window."""
    if config.documents != "apart":
        return []
    lines = []
    for name in data.domains:
        ends = data.ends(name, "train")
        count = count_cut(ends, config.seq_len)
        if count and read.get(name):
            lines.append(f"{name}: {count} of {len(ends)} documents are longer than train.seq_len, {config.seq_len} "
                         "tokens, and are read in pieces.")
    return lines


def most_repeated(read: Mapping[str, float], there: Mapping[str, float]) -> tuple[str, float]:
    """The domain whose tokens are read most often, and how often."""
    times = {name: read[name] / there[name] for name in read}
    most = max(times, key=times.__getitem__)
    return most, times[most]


def repeated(read: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    """A sentence on the domain whose tokens are read most often, where that is more than once."""
    name, epochs = most_repeated(read, there)
    if epochs <= 1:
        return []
    advice = "; so often repeated, it teaches little more: add text or train on less" if epochs > FEW_EPOCHS else ""
    return [f"{name}: {units.si(read[name])} tokens read where its text holds {units.si(there[name])}, "
            f"{epochs:.1f} times each{advice}."]
