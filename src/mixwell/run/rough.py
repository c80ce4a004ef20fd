"""What work takes roughly, from FLOPs and bytes alone: enough to tell what a measurement costs beside its work.

Nothing here is timed. The same rates stand on both sides of that comparison, so that it holds however far off they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mixwell.convert.calibration import asked
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.kernels.rates import Rates
from mixwell.lm.model import LanguageModel
from mixwell.lm.weights import skeleton
from mixwell.run.shapes import Shape
from mixwell.run.stages import KINDS, Stage
from mixwell.run.stages.convert import LENGTH, ROWS

if TYPE_CHECKING:
    from mixwell.run.stages.evaluate import EvaluateConfig

TYPICAL = 0.5  # share of the GEMM rate that a step reaches
BYTES_PER_TOKEN = 4.0  # of text, whatever the tokenizer
TEXT_BYTES_PER_S = 1e6  # read, learned from and encoded
BYTES_PER_WEIGHT = 4.0
LAYER_S = 3e-4  # of a layer's forward pass, however few the tokens: small models spend most of their time so
DRAWING, CONVERTING = 16, 8  # times that making and converting a model take as long as reading its weights
TEXT_ROLES = ("data", "tokenizer", "tokens")
MEASURED_KINDS = ("build", "load", "convert", "compress", "sample")  # each has a measurement of its own
PARTS = {"adapt": "training", "mix": "train"}  # stages that train -> what their config calls the training
TRAIN = ("train", *PARTS)


@dataclass(frozen=True)
class Pace:
    """What this machine does in a second, roughly."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, found: Rates) -> Pace:
        """From measured rates of products and of memory."""
        fastest = found.bf16_gflops if found.bf16_pays else found.fp32_gflops
        memory = max(found.memory_gbps, 1e-9)
        return cls(TYPICAL * fastest * 1e9, memory * 1e9)


@functools.lru_cache(maxsize=64)
def flops_per_token(shape: Shape, length: int) -> float:
    """Forward FLOPs per token of a model of that shape, without its weights."""
    return _network(shape).flops_per_token(length)


@functools.lru_cache(maxsize=64)
def weight_bytes(shape: Shape) -> float:
    """Bytes of its weights as they are computed with."""
    return BYTES_PER_WEIGHT * _network(shape).num_parameters()


def pass_s(shape: Shape) -> float:
    """Seconds of a forward pass over next to nothing."""
    return LAYER_S * shape.sketch().arch["num_layers"]


def _network(shape: Shape) -> LanguageModel:
    sketch = shape.sketch()
    return skeleton(LanguageModel, sketch.arch)


def trained(stage: Stage) -> Stage:
    """A stage that trains, as a training: that of an adapter beside the model, or of one proxy of a mixture."""
    part = PARTS.get(stage.kind)
    return stage if part is None else replace(stage, config=getattr(stage.config, part))


def tries(stage: Stage) -> int:
    """How often a stage trains: once for each learning rate that it tries."""
    rates = getattr(stage.config, "rates", ())
    return max(1, len(rates))


@dataclass(frozen=True)
class Rough:
    """Seconds of a run's stages."""

    stages: Mapping[str, Stage]
    shapes: Mapping[str, Shape]  # of their models
    text_sizes: Mapping[str, int]  # domain -> size of its text
    pace: Pace
    tokens_of: Callable[[Stage, float], float | None]  # (training, its FLOPs a token) -> its budget; None: its clock's

    def reading_s(self, model: str, tokens: float, length: int, rows: int = 1) -> float:
        """Of predicting so many tokens, in passes over `rows` windows of `length`."""
        shape = self.shapes[model]
        flops = tokens * flops_per_token(shape, length)
        passes = tokens / (rows * length)
        return flops / self.pace.flops + passes * pass_s(shape)

    def writing_s(self, model: str) -> float:
        """Of each token of a sample: its products, or reading the weights."""
        shape = self.shapes[model]
        products = flops_per_token(shape, LENGTH) / self.pace.flops
        weights = weight_bytes(shape) / self.pace.bytes
        return max(products, weights) + pass_s(shape)

    def building_s(self, stage: Stage) -> float:
        """Of drawing or reading a model's weights."""
        size = weight_bytes(self.shapes[stage.id])
        return DRAWING * size / self.pace.bytes

    def federating_s(self, stage: Stage) -> float:
        """Of all clients' steps, backward twice as long as forward."""
        config = stage.config
        length = config.dealing.seq_len
        return 3 * self.reading_s(stage.inputs["model"], config.tokens, length, config.batch_size)

    def converting_s(self, stage: Stage) -> float:
        """Of a conversion and its receipt."""
        before = stage.inputs["model"]
        size = weight_bytes(self.shapes[before])
        moved = CONVERTING * size / self.pace.bytes
        module = registry.find(stage.method).module()
        needs = asked(module, stage.config)
        tokens = needs.tokens + ROWS * LENGTH
        read = self.reading_s(before, tokens, LENGTH, ROWS)
        return moved + 2 * read

    def merging_s(self, stage: Stage) -> float:
        """Of a merge and its receipts, one a model."""
        before = stage.inputs["model"]
        models = len(set(stage.inputs) - set(TEXT_ROLES))
        size = models * weight_bytes(self.shapes[before])
        moved = CONVERTING * size / self.pace.bytes
        reading = self.reading_s(before, ROWS * LENGTH, LENGTH, ROWS)
        return moved + 2 * models * reading

    def training_s(self, stage: Stage) -> float:
        """Of a training: its clock's, or those of its FLOPs."""
        config = stage.config
        shape = self.shapes[stage.inputs["model"]]
        per_token = 3.0 * flops_per_token(shape, config.seq_len)
        tokens = self.tokens_of(stage, per_token)
        if tokens is None:
            return config.seconds
        rows = config.batch_size // config.accumulate
        return 3.0 * self.reading_s(stage.inputs["model"], tokens, config.seq_len, rows)

    def mixing_s(self, stage: Stage) -> float:
        """Of all proxies of a mixture."""
        return stage.config.proxies * self.training_s(trained(stage))

    def evaluating_s(self, model: str, config: EvaluateConfig) -> float:
        """Of an evaluation on held-out text."""
        share = self.stages["data"].config.held_out
        tokens = 0.0
        for size in self.text_sizes.values():
            there = share * size / BYTES_PER_TOKEN
            tokens += min(config.max_tokens, there)
        return self.reading_s(model, tokens, config.seq_len, config.batch_size)

    def sampling_s(self, stage: Stage) -> float:
        """Of all samples."""
        prompts = len(stage.config.prompts) or len(self.text_sizes)
        tokens = prompts * stage.config.max_new_tokens
        return tokens * self.writing_s(stage.inputs["model"])

    def text_s(self) -> float:
        """Of going through the text once."""
        return sum(self.text_sizes.values()) / TEXT_BYTES_PER_S

    def of(self, stage: Stage) -> float:
        """Of a stage; 0 where its shape cannot be, which it says when its own turn comes."""
        try:
            return WORK[stage.kind](self, stage)
        except MixwellError:
            return 0.0

    def weighing_s(self, stage: Stage, config: EvaluateConfig) -> float:
        """Of the evaluation behind a stage; 0 where there is none."""
        if not KINDS[stage.kind].evaluated:
            return 0.0
        try:
            return self.evaluating_s(stage.id, config)
        except MixwellError:
            return 0.0


WORK: dict[str, Callable[[Rough, Stage], float]] = {
    "data": lambda rough, stage: 0.0,
    "tokenizer": lambda rough, stage: rough.text_s(),
    "tokens": lambda rough, stage: rough.text_s(),
    "build": Rough.building_s,
    "load": Rough.building_s,
    "train": Rough.training_s,
    "mix": Rough.mixing_s,
    "adapt": lambda rough, stage: rough.training_s(trained(stage)),
    "federate": Rough.federating_s,
    "convert": Rough.converting_s,
    "compress": Rough.converting_s,
    "merge": Rough.merging_s,
    "evaluate": lambda rough, stage: rough.evaluating_s(stage.inputs["model"], stage.config),
    "sample": Rough.sampling_s,
}
