"""Several models of one shape as the experts of one: their feed-forward blocks side by side, gates from prompts.

**Equation:** E_i = the block of model i;  row i of layer l's router = s / ||s||, s = mean state of the base model over
    model i's positive prompts less that over its negative ones. States: hidden: the residual stream that layer l
    reads; normed: what its router will read; cheap_embed: the embeddings, for all layers. random: N(0, 1) ·
    uniform_random: U(-1 / sqrt(D), 1 / sqrt(D)) · even: zero, with which k = E is the gateless mean of all experts.
    Weights: softmax over the chosen ones. All else is the base's, or the mean over the models.
**Shapes:** gate_up_proj [2 F, D] of each model -> [E, 2 F, D]; router.weight [E, D].
**Reference:** Lee et al. 2024, Flexible and Effective Mixing of Large Language Models into a Mixture of Domain Experts
    (2408.17280), section 3; mergekit-moe 0.1.5, whose YAML `config` reads.
**Differs:** feed-forward blocks only. The source may also make experts of q, k and v, each map its own sum_e w_e W_e x
    behind a router of its own; no mixer of `sequence` multiplies so (`attention_experts` routes to whole heads of one
    model and hides the keys of others), and experts of it would lose what each model's maps do. No expert is always
    on but mergekit's `shared_experts`. An adapter is an expert as `BASE+ADAPTER`, in the base's weights. The mean over
    prompts weighs each prompt alike, without padding.
**Fails when:** hidden rows are used as they are: they come from states before the norm, the router reads states behind
    it; `normed` takes these.
**Cost:** the blocks of all models; a pass of the base model for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from mixwell.convert._parts import (
    DOWN,
    GATE_UP,
    SPARSE,
    Rewrite,
    channel,
    dense_example,
    dense_layers,
    side_by_side,
    stacked,
)
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_bytes
from mixwell.core.method import method
from mixwell.mixing import check_least

Gate = Literal["hidden", "normed", "cheap_embed", "random", "uniform_random", "even"]
PROMPTED = ("hidden", "normed", "cheap_embed")  # gates that are made from prompts
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One model that becomes an expert of every layer."""

    source_model: str  # folder, a run's stage, or BASE+ADAPTER for a base with an adapter in its weights
    positive_prompts: tuple[str, ...] = ()  # texts that it is for
    negative_prompts: tuple[str, ...] = ()  # texts that it is not for
    noise_scale: float | None = None  # standard deviation of noise on its weights
    residual_scale: float | None = None  # factor on W_down


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of mixing models; the words are those of mergekit-moe's YAML."""

    experts: tuple[Expert, ...] = ()  # two at least
    config: str | None = None  # a YAML file of mergekit-moe, in place of all others
    base_model: str | None = None  # checked against the model handed in, where it is named
    gate_mode: Gate = "hidden"  # how the router starts
    experts_per_token: int = 2  # k, 1 to E
    shared_experts: tuple[Expert, ...] = ()  # blocks that every token visits
    rest: Literal["base", "mean"] = "base"  # whose attention, norms and embeddings are taken
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of the result; default the base's
    architecture: str | None = None  # model_type tried first where the result is written

    def __post_init__(self) -> None:
        check_least(self, experts_per_token=1)
        if self.config is not None and self.experts:
            raise ValueError("config names a file that holds the experts; leave them out beside it")
        if self.config is None:
            _check_experts(self)


def _check_experts(config: Config) -> None:
    count = len(config.experts)
    if count < 2:
        raise ValueError(f"{count} experts; expected two models at least")
    if config.experts_per_token > count:
        raise ValueError(f"experts_per_token is {config.experts_per_token} of {count} experts")
    for expert in config.experts:
        if config.gate_mode in PROMPTED and not expert.positive_prompts:
            raise ValueError(f"{expert.source_model} has no positive_prompts; gate_mode {config.gate_mode!r} is made "
                             "from them")


def settled(config: Config) -> Config:
    """The options, those of a YAML file of mergekit-moe read; a file that is none raises `MixwellError`."""
    if config.config is None:
        return config
    try:
        found = yaml.safe_load(read_bytes(Path(config.config)).decode())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise MixwellError(f"{config.config} is no YAML ({error}); expected the file of mergekit-moe.") from error
    if isinstance(found, Mapping) and "config" in found:
        raise MixwellError(f"{config.config} names a further file as config; expected the experts themselves.")
    return from_dict(Config, found, config.config)


def needs(config: Config) -> Needs:
    """The other models."""
    found = settled(config)
    named = [expert.source_model for expert in (*found.experts, *found.shared_experts)]
    if found.base_model is not None:
        named.append(found.base_model)
    return Needs(models=tuple(named), files=(config.config,) if config.config else ())


def promises(config: Config) -> dict[str, float]:
    """Nothing: several models are none of them."""
    return {}


def mean_state(states: Sequence[list[Tensor]]) -> Tensor:
    """Mean over the prompts of each one's mean state [L, D], from the states of each layer [T, D] of each prompt."""
    means = [torch.stack([layer.mean(0) for layer in prompt]) for prompt in states]
    return torch.stack(means).mean(0)


def prompt_rows(base: Checkpoint, expert: Expert, mode: str, calibration: Calibration) -> Tensor:
    """A router row for each layer [L, D] that the expert's prompts give."""
    def states(texts: Sequence[str]) -> Tensor:
        if mode == "cheap_embed":
            return mean_state([calibration.states(base, text, residual=True)[:1] for text in texts])
        return mean_state([calibration.states(base, text, residual=mode == "hidden") for text in texts])

    rows_LD = states(expert.positive_prompts)
    if expert.negative_prompts:
        rows_LD = rows_LD - states(expert.negative_prompts)
    return normalize(rows_LD, dim=-1, eps=1e-8)


def gates(base: Checkpoint, config: Config, generator: torch.Generator, calibration: Calibration) -> Tensor:
    """The rows of every layer's router, float32 [L, E, D]."""
    layers, dim = int(base.arch["num_layers"]), int(base.arch["dim"])
    shape = (layers, len(config.experts), dim)
    if config.gate_mode == "random":
        return torch.randn(shape, generator=generator)
    if config.gate_mode == "uniform_random":
        within = math.sqrt(1 / dim)
        return (2 * torch.rand(shape, generator=generator) - 1) * within
    if config.gate_mode == "even":
        return torch.zeros(shape)
    rows = [prompt_rows(base, expert, config.gate_mode, calibration) for expert in config.experts]
    return torch.stack([row.expand(layers, dim) for row in rows], dim=1)


def block_of(model: Checkpoint, expert: Expert, layer: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The feed-forward block of one model, with its noise and its scale."""
    gate_up, down = (model.tensors[channel(layer, name)] for name in (GATE_UP, DOWN))
    if expert.noise_scale:
        gate_up, down = (_noisy(weight, expert.noise_scale, generator) for weight in (gate_up, down))
    if expert.residual_scale is not None:
        down = down * expert.residual_scale
    return gate_up, down


def _noisy(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    noise = std * torch.randn(weight.shape, generator=generator)
    return (weight + noise).to(weight.dtype)


def check_alike(base: Checkpoint, other: Checkpoint, name: str) -> None:
    """Raise `MixwellError` where a model has not the base's tensors in the base's shapes."""
    for tensor, value in base.tensors.items():
        if tensor not in other.tensors:
            raise MixwellError(f"{name} has no {tensor}, which the base model has; expected models of one shape.")
        found = tuple(other.tensors[tensor].shape)
        if found != tuple(value.shape):
            raise MixwellError(f"{name} has {tensor} of shape {found}, the base model {tuple(value.shape)}; expected "
                               "models of one shape.")


def _check_base(base: Checkpoint, named: Checkpoint, name: str) -> None:
    check_alike(base, named, name)
    other = [tensor for tensor, value in base.tensors.items() if not torch.equal(value, named.tensors[tensor])]
    if other:
        raise MixwellError(f"base_model {name} is another model than the one handed in ({other[0]} differs); hand in "
                           "that one.")


@method(
    title="Several models as experts of one",
    paper="Flexible and Effective Mixing of Large Language Models into a Mixture of Domain Experts",
    year=2024,
)
def mixture_of_models(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                      calibration: Calibration) -> Checkpoint:
    """Make a mixture whose experts are the feed-forward blocks of several models; the one handed in is their base.

    Raises `MixwellError` where a model is of another shape, has tensors that the base lacks, or no dense blocks.
    """
    config = settled(config)
    work = Rewrite(checkpoint, "mixing models")
    layers = dense_layers(work.specs, None, "mixing models")
    if config.base_model is not None:
        named_base = calibration.model(config.base_model)
        _check_base(checkpoint, named_base, config.base_model)
    named = (*config.experts, *config.shared_experts)
    models = {expert.source_model: calibration.model(expert.source_model) for expert in named}
    for name, model in models.items():
        check_alike(checkpoint, model, name)
    rows_LED = gates(checkpoint, config, generator, calibration)
    for layer in layers:
        _mix_layer(work, layer, config, models, rows_LED[layer], generator)
    if config.rest == "mean":
        parts = [models[expert.source_model].tensors for expert in config.experts]
        work.left = {name: _mean([part[name] for part in parts]) for name in work.left}
    return _finished(work.result(), config)


def _mix_layer(work: Rewrite, layer: int, config: Config, models: Mapping[str, Checkpoint], rows_ED: Tensor,
               generator: torch.Generator) -> None:
    """Put the blocks of all models in place of the base's."""
    def blocks(experts: Sequence[Expert]) -> list[tuple[Tensor, Tensor]]:
        found = []
        for expert in experts:
            model = models[expert.source_model]
            found.append(block_of(model, expert, layer, generator))
        return found

    gate_up, down = stacked(blocks(config.experts))
    work.drop(layer, GATE_UP, "the base's block gives way to the models' own")
    work.drop(layer, DOWN, "the base's block gives way to the models' own")
    work.put_block(layer, (gate_up, down))
    work.put(layer, "router.weight", rows_ED)
    k = config.experts_per_token
    router = {"method": "top_k", "k": k, "renormalise": True} | ({"constant": True} if k == 1 else {})
    spec = {"method": SPARSE, "num_experts": len(config.experts), "hidden_dim": down.shape[2], "router": router}
    if config.shared_experts:
        beside = blocks(config.shared_experts)
        work.put_shared(layer, side_by_side(beside))
        spec["shared_experts"] = len(config.shared_experts)
    work.specs[layer] = spec


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    wide = [tensor.float() for tensor in tensors]
    return torch.stack(wide).mean(0).to(tensors[0].dtype)


def _finished(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """In the type and with the architecture that were asked for."""
    tensors = checkpoint.tensors
    arch = checkpoint.arch
    if config.dtype is not None:
        dtype = DTYPES[config.dtype]
        tensors = {name: value if "router" in name else value.to(dtype) for name, value in tensors.items()}
    if config.architecture is not None:
        arch = {**arch, "architecture": config.architecture}
    return checkpoint.derive(arch=arch, tensors=tensors)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model and two more of its shape, of which every token visits both."""
    experts = Expert(source_model="a"), Expert(source_model="b")
    checkpoint = dense_example(generator)
    return {"checkpoint": checkpoint, "config": Config(experts=experts, gate_mode="even"), "generator": generator}
