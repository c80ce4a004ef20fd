"""A recipe's training as the numbers that a plan needs, from its model's shape alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mixwell.core import machine
from mixwell.core.errors import MixwellError, suggest
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.config import TrainConfig
from mixwell.lm.weights import described_alone, skeleton
from mixwell.parallel.team import SPREAD
from mixwell.parallel.workload import LayerWork, Work
from mixwell.run import recipe as recipes
from mixwell.run import rough, sizing
from mixwell.run.costs import Costs
from mixwell.run.recipe import Recipe
from mixwell.run.shapes import Shape
from mixwell.run.stages import Stage

if TYPE_CHECKING:
    from mixwell.run.stages.train import Training

WIDTHS = 6  # vectors of a token that a layer keeps beside what comes out of its products: sums, norms, queries turned


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step: what it does, and what it takes to run one."""

    work: Work
    arch: Mapping[str, Any]  # of the model, as plain data
    config: Training
    processes: int  # that share its rows

    @property
    def many_rows(self) -> int:
        """Of a micro-batch in one process, two at least."""
        parts = self.config.accumulate * self.processes
        return max(2, self.config.batch_size // parts)

    @property
    def few_rows(self) -> int:
        """Half as many."""
        return self.many_rows // 2


def step_of(chosen: Recipe, stage: str | None, processes: int) -> Step:
    """A step of a recipe's training, by default the last, over so many processes; the model may be any size."""
    with described_alone():
        training, shape = training_of(chosen, stage)
        arch = shape.sketch().arch
        work = work_of(arch, training.config)
    return Step(work=work, arch=arch, config=training.config, processes=processes)


def training_of(chosen: Recipe, stage: str | None = None) -> tuple[Stage, Shape]:
    """The training of a recipe that is planned, by default its last, and the shape of its model.

    Raises `MixwellError` where the recipe has no such training.
    """
    stages = recipes.stages(sizing.nominal(chosen))
    trainings = {one.id: one for one in stages if one.kind in rough.TRAIN}
    name = stage or next(reversed(trainings), None)
    if name not in trainings:
        listed = ", ".join(trainings) or "none"
        near = suggest(str(name), trainings)
        raise MixwellError(f"--stage: no stage {name!r} that trains.{near} Trainings: {listed}.")
    costs = Costs(stages, machine.threads(chosen.threads))
    shape = costs.shapes[trainings[name].inputs["model"]]
    return rough.trained(trainings[name]), shape


def work_of(described: Mapping[str, Any], config: TrainConfig) -> Work:
    """A step of a training of the model that is described as plain data."""
    network = skeleton(LanguageModel, described)
    arch = network.config
    layers = tuple(layer_work(layer, config.seq_len, arch.dim) for layer in network.layers)
    weights = sum(parameter.numel() for parameter in network.parameters())
    ends = weights - sum(layer.weights for layer in layers)
    named = dict(network.named_parameters())
    spread = [name for name in named if name.rpartition(".")[2] in SPREAD]
    head_dim = arch.head_dim or arch.dim // arch.num_heads
    return Work(
        layers=layers, dim=arch.dim, heads=arch.num_heads, kv_heads=arch.num_kv_heads or arch.num_heads,
        head_dim=head_dim, end_weights=ends, head_flops=2.0 * arch.vocab_size * arch.dim, vocab_size=arch.vocab_size,
        parameters=len(named), expert_tensors=len(spread), rows=config.batch_size, length=config.seq_len,
        accumulate=config.accumulate, checkpointing=config.checkpointing,
        number_bytes=2 if config.settled_dtype == "bf16" else 4)


def layer_work(layer: Any, length: int, dim: int) -> LayerWork:
    """What a layer of a network computes and holds."""
    flops = layer.flops_per_token(length)
    weights = _numbers(layer)
    mixer = layer.channel_mixer
    channel = _numbers(mixer)
    across = weights - channel
    if not hasattr(type(mixer), "spread"):
        kept = _kept(across, channel - _idle(mixer), dim)
        return LayerWork(dense_flops=flops, dense_weights=weights, kept=kept)
    own = dict(mixer.named_parameters(recurse=False))
    expert_weights = sum(own[name].numel() for name in SPREAD if name in own)
    chosen = float(mixer.router.experts_per_token)
    experts = int(mixer.config.num_experts)
    touched = expert_weights * chosen / experts
    beside = channel - expert_weights
    copied = 2.0 * chosen * dim  # rows sorted by expert, and what comes out of their experts
    kept = _kept(across, beside + touched, dim) + copied
    return LayerWork(dense_flops=flops - 2.0 * touched, dense_weights=across + beside, kept=kept,
                     expert_flops=2.0 * touched, expert_weights=expert_weights, experts=experts, chosen=chosen,
                     balanced=bool(mixer.balance))


def _kept(across: float, channels: float, dim: int) -> float:
    """Numbers that a token leaves behind in a layer of so many weights that it goes through.

    A product leaves one for each row of its weight; a gated branch of three matrices leaves a fourth of that size.
    """
    products = across + channels * 4 / 3
    return products / dim + WIDTHS * dim


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _idle(mixer: Any) -> int:
    """Weights of a mixer that a token does not touch."""
    touched = round(mixer.flops_per_token() / 2)
    return max(0, _numbers(mixer) - touched)
