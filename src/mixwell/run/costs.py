"""What each stage of a run will take, told before it starts: from a few timed steps of the real thing, which are kept.

Timing never takes more than about a tenth of the work that it is for: what is planned and what a measurement would take
are told roughly from FLOPs and bytes (`rough`), and where the least that can be timed would take too long the machine's
rates alone tell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mixwell.core import machine
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.core.measured import kept
from mixwell.core.units import seconds, si
from mixwell.kernels.rates import rates
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run import rough, timing
from mixwell.run.keys import source_digest
from mixwell.run.rough import Pace, Rough
from mixwell.run.shapes import Shape, shapes
from mixwell.run.stages import KINDS, Stage
from mixwell.run.stages.convert import LENGTH, ROWS
from mixwell.run.stages.text import characters, documents
from mixwell.run.stages.train import most_repeated
from mixwell.run.timing import Timed

if TYPE_CHECKING:
    from mixwell.run.stages.evaluate import EvaluateConfig
    from mixwell.run.stages.train import Training

Progress = Callable[[str], None]  # hears what is done now
TENTH = 0.1  # share of the planned work that timing may take
PATIENCE_S = 1.0  # aim of one timed step where the work is long
STEPS_TIMED = 4  # of about that length, for each measurement
WRITTEN = 2 * (timing.PROMPT + timing.NEW)  # tokens of a timed sample
LEAST_ROWS = 5  # that timing steps reads: one warms up, one is judged, three count


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a stage is expected to take; None where it does not apply or nobody measured it."""

    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None
    peak_bytes: float | None = None  # resident memory of the process at its height
    epochs: float | None = None  # times that a training reads the domain it repeats most


class Costs:
    """Predictions for the stages of one run; what they need is measured when they ask for it."""

    def __init__(self, stages: Sequence[Stage], threads: int, progress: Progress = lambda words: None,
                 least_s: float = 0.0, *, weighed: EvaluateConfig | None = None,
                 left: Collection[str] | None = None) -> None:
        self.stages = {stage.id: stage for stage in stages}
        self.weighed = weighed  # how models are evaluated after their stages
        self.left = self.stages if left is None else left  # ids of the stages that are not there yet
        self.threads, self.progress = threads, progress
        self.least_s = least_s  # what the run will take at least: it is going to be fitted to so many seconds

    @functools.cached_property
    def vocab_size(self) -> int:
        """Ids of the recipe's tokenizer, before there is one."""
        config = self.stages["tokenizer"].config
        return Tokenizer.load(config.path).vocab_size if config.path else config.vocab_size

    @functools.cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the run's models by stage."""
        return shapes(list(self.stages.values()), self.vocab_size)

    def shape(self, stage: str) -> Checkpoint:
        """A checkpoint shaped like the model of a stage, with weights that mean nothing."""
        return self.shapes[stage].make()

    def predict(self, stage: Stage) -> Prediction:
        """What the stage will take. A shape that cannot be is told here, before anything runs."""
        try:
            if KINDS[stage.kind].makes_model:
                self.shapes[stage.id].sketch()
            return PREDICTIONS[stage.kind](self, stage)
        except MixwellError as error:
            raise type(error)(f"stage {stage.id}: {error}") from error

    def evaluation(self, model: str, config: EvaluateConfig) -> Prediction:
        """What evaluating the model of a stage will take."""
        tokens = self.held_tokens(config.max_tokens)
        found = self.reading(model, config.batch_size, config.seq_len)
        return Prediction(seconds=tokens * found["seconds_per_token"], tokens=tokens,
                          peak_bytes=found["peak_bytes"] or None, flops=tokens * found["flops_per_token"])

    def training(self, model: str, config: Training) -> Timed:
        """Seconds and FLOPs a token, and peak memory, of training the model of a stage."""
        rows = config.batch_size // config.accumulate
        settings = [self.shapes[model].key, rows, config.seq_len, config.settled_dtype, config.checkpointing,
                    *config.frozen]
        self._check_step(model, rows, config.seq_len)
        row_s = 3.0 * self.rough.reading_s(model, config.seq_len, config.seq_len)
        if not self._worth(LEAST_ROWS * row_s):
            return self._estimated(model, config.seq_len, 3.0)
        self.progress(f"time a training step of {model}, {self._at_most}")
        return self._kept("training", settings,
                          lambda: timing.training(self.shape(model), rows, config, self.patience_s))

    def _check_step(self, model: str, rows: int, length: int) -> None:
        """Refuse a step that cannot fit in memory: each layer keeps at least what comes into it, in two bytes."""
        arch = self.shapes[model].sketch().arch
        values = rows * length * arch["dim"] * arch["num_layers"]
        least, memory = 2 * values, machine.memory_bytes()
        if least > memory:
            raise MixwellError(f"a step of {rows} rows of {length} tokens keeps {si(least, 'B')} at least, this "
                               f"machine has {si(memory, 'B')} of memory; expected fewer rows (train.batch_size, or "
                               "more train.accumulate) or shorter ones (train.seq_len).")

    def reading(self, model: str, rows: int, length: int) -> Timed:
        """Seconds and FLOPs a token, and peak memory, of evaluating the model of a stage."""
        settings = [self.shapes[model].key, rows, length]
        row_s = self.rough.reading_s(model, length, length)
        if not self._worth(LEAST_ROWS * row_s):
            return self._estimated(model, length, 1.0)
        self.progress(f"time {model} reading text, {self._at_most}")
        return self._kept("reading", settings, lambda: timing.reading(self.shape(model), rows, length,
                                                                      self.patience_s))

    def writing(self, model: str) -> Timed:
        """Seconds for each token of a sample."""
        token_s = self.rough.writing_s(model)
        if not self._worth(WRITTEN * token_s):
            return {"seconds_per_token": token_s}
        self.progress(f"time {model} writing text")
        return self._kept("writing", self.shapes[model].key, lambda: timing.writing(self.shape(model)))

    def converting(self, stage: Stage) -> Timed:
        """Seconds and peak memory of a conversion and its receipt."""
        before = stage.inputs["model"]
        settings = [self.shapes[before].key, stage.method, stage.plain_config()]
        whole_s = self.rough.converting_s(stage)
        if not self._worth(whole_s):
            return {"seconds": whole_s, "peak_bytes": 0.0}
        self.progress(f"time the conversion to {stage.id}")
        return self._kept("converting", settings, lambda: timing.converting(self.shape(before), stage))

    def building(self, stage: Stage) -> Timed:
        """Seconds and peak memory of making or reading a model."""
        whole_s = self.rough.building_s(stage)
        if not self._worth(whole_s):
            return {"seconds": whole_s, "peak_bytes": 0.0}
        self.progress(f"time making {stage.id}")
        return self._kept("building", self.shapes[stage.id].key, lambda: timing.once(lambda: self.shape(stage.id)))

    def texts(self) -> dict[str, list[str]]:
        """The recipe's text by domain."""
        found = documents(self.stages["data"])
        return {name: [document.text for document in own] for name, own in found.items()}

    @functools.cached_property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Size of the text by the stage that collects it and by domain, known without reading it."""
        found = {}
        for name, stage in self.stages.items():
            if stage.kind == "data":
                found[name] = characters(stage)
        return found

    @property
    def text_sizes(self) -> dict[str, int]:
        """`sizes` of the run's own text."""
        return self.sizes["data"]

    @property
    def text_bytes(self) -> int:
        """Size of all the text."""
        return sum(self.text_sizes.values())

    def held_tokens(self, most: int) -> float:
        """Tokens that an evaluation reads: at most `most` of each domain, less where little is held out."""
        share = self.stages["data"].config.held_out
        bytes_per_token = self.tokenizing()["bytes_per_token"]
        held = (share * size / bytes_per_token for size in self.text_sizes.values())
        return sum(min(most, tokens) for tokens in held)

    def train_tokens(self) -> float:
        """Tokens of the text that is trained on, read once."""
        return sum(self.train_tokens_by_domain().values())

    def train_tokens_by_domain(self, data: str = "data") -> dict[str, float]:
        """`train_tokens` of each domain, of the text that the stage `data` collects."""
        share = 1.0 - self.stages[data].config.held_out
        per_byte = share / self.tokenizing()["bytes_per_token"]
        return {name: per_byte * size for name, size in self.sizes[data].items()}

    def text_of(self, stage: Stage) -> str:
        """Id of the stage that collects what `stage` reads."""
        if "data" in stage.inputs:
            return stage.inputs["data"]
        tokens = self.stages[stage.inputs["tokens"]]
        return tokens.inputs["data"]

    def tokenizing(self) -> Timed:
        """Seconds a byte of training the tokenizer and of encoding, and bytes a token, on a sample of the text."""
        path = self.stages["tokenizer"].config.path
        self.progress("time the tokenizer on a sample of the text")
        return self._kept("tokenizing", [self._fingerprint, self.vocab_size, path],
                          lambda: timing.tokenizing(timing.sample_of(self.texts()), self.vocab_size, path))

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of the run's own text."""
        return KINDS["data"].fingerprint(self.stages["data"])

    def tokens_of(self, stage: Stage, flops_per_token: float) -> float | None:
        """The budget of a training in tokens; None where the clock decides."""
        config = stage.config
        text = 0.0 if config.epochs is None else self._epoch_tokens(stage)
        return config.token_budget(flops_per_token, text)

    def _epoch_tokens(self, stage: Stage) -> float:
        """Tokens of the domains that have a share in a training, each read once."""
        weights = stage.config.shares
        there = self.train_tokens_by_domain(self.text_of(stage))
        read = there if weights is None else {name for name, share in weights.items() if share}
        return sum(there[name] for name in read if name in there)

    @functools.cached_property
    def rough(self) -> Rough:
        """What work takes where nothing was timed."""
        measured = rates()
        pace = Pace.of(measured)
        return Rough(self.stages, self.shapes, self.text_sizes, pace, self.tokens_of)

    @property
    def _to_do(self) -> list[Stage]:
        names = [name for name in self.stages if name in self.left]
        return [self.stages[name] for name in names]

    @functools.cached_property
    def planned_s(self) -> float:
        """Seconds that all that is left to do will take, roughly."""
        left = self._to_do
        whole = sum(map(self.rough.of, left))
        if self.weighed is not None:
            for stage in left:
                whole += self.rough.weighing_s(stage, self.weighed)
        return max(self.least_s, whole)

    @functools.cached_property
    def measurements(self) -> int:
        """How many measurements share what timing may take: each model is trained and read with, or made, and so on."""
        own = [stage for stage in self._to_do if stage.kind in rough.MEASURED_KINDS]
        trained = self._distinct()
        return max(1, 2 * len(trained) + len(own))

    @property
    def allowed_s(self) -> float:
        """Seconds that one measurement may take."""
        return TENTH * self.planned_s / self.measurements

    @property
    def patience_s(self) -> float:
        """Seconds that one timed step may take."""
        return min(PATIENCE_S, self.allowed_s / STEPS_TIMED)

    def _worth(self, measuring_s: float) -> bool:
        """Whether the planned work justifies a measurement of so many seconds, roughly."""
        return measuring_s <= self.allowed_s

    @property
    def _at_most(self) -> str:
        """How long a measurement of steps takes, in words."""
        return f"{seconds(STEPS_TIMED * self.patience_s)} at most"

    def _distinct(self) -> set[tuple[str, int, int]]:
        """The trainings that are timed apart: seeds of one shape share a measurement."""
        trainings = [rough.trained(stage) for stage in self._to_do if stage.kind in rough.TRAIN]
        found = set()
        for stage in trainings:
            shape = self.shapes[stage.inputs["model"]]
            found.add((shape.key, stage.config.batch_size, stage.config.seq_len))
        return found

    def _estimated(self, model: str, length: int, passes: float) -> Timed:
        """What the rates alone say of a token; `passes`: how many forward passes its work is worth."""
        flops = passes * rough.flops_per_token(self.shapes[model], length)
        took = passes * self.rough.reading_s(model, 1.0, length)
        return {"seconds_per_token": took, "flops_per_token": flops, "peak_bytes": 0.0}

    def _kept(self, what: str, settings: Any, measure: Callable[[], Mapping[str, float]]) -> Timed:
        """The measurement `what` at `settings`, from the disk where this source made it before."""
        key = digest([settings, source_digest()])
        return kept(f"{what} {key}", measure, self.threads)


def _nothing(costs: Costs, stage: Stage) -> Prediction:
    """Nothing that can be told: the text is read already when the prediction is made."""
    return Prediction()


def _tokenizer(costs: Costs, stage: Stage) -> Prediction:
    return Prediction(seconds=costs.text_bytes * costs.tokenizing()["learn_seconds_per_byte"])


def _tokens(costs: Costs, stage: Stage) -> Prediction:
    found = costs.tokenizing()
    sizes = costs.sizes[costs.text_of(stage)]
    size = sum(sizes.values())
    seconds = size * found["encode_seconds_per_byte"]
    tokens = size / found["bytes_per_token"]
    return Prediction(seconds=seconds, tokens=tokens)


def _model(costs: Costs, stage: Stage) -> Prediction:
    found = costs.building(stage)
    return Prediction(seconds=found["seconds"], peak_bytes=found["peak_bytes"] or None)


def _train(costs: Costs, stage: Stage) -> Prediction:
    config = stage.config
    found = costs.training(stage.inputs["model"], config)
    per_token, flops = found["seconds_per_token"], found["flops_per_token"]
    tokens = costs.tokens_of(stage, flops)
    if tokens is None:
        tokens = config.seconds / per_token
    return Prediction(tokens=tokens, flops=tokens * flops, peak_bytes=found["peak_bytes"] or None,
                      seconds=config.seconds or tokens * per_token,
                      epochs=_epochs(tokens, config.shares, costs.train_tokens_by_domain(costs.text_of(stage))))


def _adapt(costs: Costs, stage: Stage) -> Prediction:
    """As the same training of the whole model: an adapter saves a third of the products at most."""
    once = _train(costs, rough.trained(stage))
    count = rough.tries(stage)
    return replace(once, seconds=once.seconds and count * once.seconds, flops=once.flops and count * once.flops)


def _federate(costs: Costs, stage: Stage) -> Prediction:
    """As many tokens read three times: forward, and backward for twice as long."""
    config = stage.config
    found = costs.reading(stage.inputs["model"], config.batch_size, config.dealing.seq_len)
    tokens = config.tokens
    seconds = 3 * tokens * found["seconds_per_token"]
    flops = 3 * tokens * found["flops_per_token"]
    return Prediction(tokens=tokens, flops=flops, seconds=seconds)


def _epochs(tokens: float, weights: Mapping[str, float] | None, there: Mapping[str, float]) -> float:
    """Times that a training of so many tokens reads the domain it repeats most."""
    shares = weights or there
    whole = sum(shares.values()) or 1.0
    read = {name: tokens * shares.get(name, 0.0) / whole for name in there}
    return most_repeated(read, there)[1]


def _mix(costs: Costs, stage: Stage) -> Prediction:
    """All proxies, each trained and evaluated."""
    config = stage.config
    trained = costs.training(stage.inputs["model"], config.train)
    read = costs.reading(stage.inputs["model"], config.train.batch_size, config.train.seq_len)
    tokens = config.proxies * config.train.tokens
    judged = config.proxies * costs.held_tokens(config.eval_tokens)
    seconds = tokens * trained["seconds_per_token"] + judged * read["seconds_per_token"]
    flops = tokens * trained["flops_per_token"]
    return Prediction(seconds=seconds, tokens=tokens, flops=flops, peak_bytes=trained["peak_bytes"] or None)


def _convert(costs: Costs, stage: Stage) -> Prediction:
    found = costs.converting(stage)
    return Prediction(seconds=found["seconds"], tokens=ROWS * LENGTH, peak_bytes=found["peak_bytes"] or None)


def _merge(costs: Costs, stage: Stage) -> Prediction:
    return Prediction(seconds=costs.rough.merging_s(stage), tokens=ROWS * LENGTH)


def _evaluate(costs: Costs, stage: Stage) -> Prediction:
    return costs.evaluation(stage.inputs["model"], stage.config)


def _sample(costs: Costs, stage: Stage) -> Prediction:
    prompts = len(stage.config.prompts) or len(costs.text_sizes)
    tokens = prompts * stage.config.max_new_tokens
    per_token = costs.writing(stage.inputs["model"])["seconds_per_token"]
    return Prediction(tokens=tokens, seconds=tokens * per_token)


PREDICTIONS: dict[str, Callable[[Costs, Stage], Prediction]] = {
    "data": _nothing, "tokenizer": _tokenizer, "tokens": _tokens, "build": _model, "load": _model, "train": _train,
    "adapt": _adapt, "federate": _federate,
    "mix": _mix, "convert": _convert, "compress": _convert, "merge": _merge, "evaluate": _evaluate, "sample": _sample,
}
