"""What a language model is made of, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mixwell.core import registry
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.kernels.norm import Kind
from mixwell.mixing import check_above

CHANNEL_FAMILY = "experts.layers"
SEQUENCE_FAMILY = "sequence"
ROUTER_FAMILY = "experts.routers"
Place = Literal["before", "after", "around", "parallel", "parallel_shared"]  # see `lm.layer`


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, layers of one sequence mixer and one channel mixer each, final norm, head."""

    vocab_size: int  # V
    dim: int  # D, width of the residual stream
    num_layers: int
    num_heads: int  # H, query heads
    num_kv_heads: int | None = None  # G, key/value heads, a divisor of H; default H
    head_dim: int | None = None  # P, even; default D / H
    norm_eps: float = 1e-5
    norm: Kind = "rms"  # kind of every norm
    norm_place: Place = "before"  # of a layer's norms: before each mixer, after it, both; or mixers side by side
    residual_scale: float = 1.0  # factor on what a mixer adds to the residual stream, above 0
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None  # {"type": "linear", "factor": 2}, see `kernels.rope`
    max_positions: int = 2048  # length that the model is meant for; longer input is refused by learnt positions only
    learned_positions: bool = False  # a learnt vector of each position is added to the embedding
    embed_scale: float = 1.0  # factor on the embedding, above 0
    logit_scale: float = 1.0  # factor on the logits, above 0
    logit_softcap: float | None = None  # c: logits l become c tanh(l / c), above 0
    tie_embeddings: bool = False  # the head uses the embedding's weights
    # method and options, for all layers or one entry a layer; options left out come from the fields above
    sequence_mixer: Mapping[str, Any] | tuple[Mapping[str, Any], ...] = field(
        default_factory=lambda: {"method": "sequence.attention"})
    channel_mixer: Mapping[str, Any] | tuple[Mapping[str, Any], ...]
    architecture: str = "auto"  # Hugging Face's model_type where it came from a folder
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        check_above(self, norm_eps=0, residual_scale=0, embed_scale=0, logit_scale=0, logit_softcap=0)
        for name in ("sequence_mixer", "channel_mixer"):
            spec = getattr(self, name)
            listed = not isinstance(spec, Mapping)
            if listed and len(spec) != self.num_layers:
                raise ValueError(f"{name} has {len(spec)} entries for {self.num_layers} layers; give one for each "
                                 "layer, or one for all")
        alike = isinstance(self.sequence_mixer, Mapping) and isinstance(self.channel_mixer, Mapping)
        for layer in range(1 if alike else self.num_layers):  # however many layers somebody asks for
            self.sequence(layer)
            self.channel(layer)

    def sequence(self, layer: int) -> tuple[registry.Entry, Any]:
        """Method and config of a layer's sequence mixer."""
        return self._mixer("sequence_mixer", SEQUENCE_FAMILY, layer)

    def channel(self, layer: int) -> tuple[registry.Entry, Any]:
        """Method and config of a layer's channel mixer."""
        return self._mixer("channel_mixer", CHANNEL_FAMILY, layer)

    def _mixer(self, name: str, family: str, layer: int) -> tuple[registry.Entry, Any]:
        spec = getattr(self, name)
        own = spec if isinstance(spec, Mapping) else spec[layer]
        options = dict(own)
        if not isinstance(options.get("method"), str):
            raise MixwellError(f"{name}: expected a method, got {options}; see `mixwell list {family}`.")
        entry = registry.find(options.pop("method"), family)
        config = entry.module().Config
        taken = [option.name for option in fields(config) if option.name in _SHARED]
        shared = {option: getattr(self, option) for option in taken}
        return entry, from_dict(config, shared | options, name)


_SHARED = {f.name for f in fields(ModelConfig)} - {"sequence_mixer", "channel_mixer", "architecture"}


def expanded(arch: Mapping[str, Any]) -> dict[str, Any]:
    """`arch` with every default written out and one mixer entry a layer: equal models give equal data."""
    config = from_dict(ModelConfig, arch)
    plain = to_dict(config)
    plain["sequence_mixer"] = _expanded_layers(config, config.sequence_mixer, config.sequence)
    plain["channel_mixer"] = _expanded_layers(config, config.channel_mixer, config.channel)
    return plain


def _expanded_layers(config: ModelConfig, spec: Any,
                     mixer: Callable[[int], tuple[registry.Entry, Any]]) -> list[dict[str, Any]]:
    """An entry a layer, each data of its own; layers that one entry speaks for are alike."""
    layers = range(config.num_layers)
    if not isinstance(spec, Mapping):
        return [_expanded_mixer(*mixer(layer)) for layer in layers]
    first = _expanded_mixer(*mixer(0))
    return [deepcopy(first) for _ in layers]


def _expanded_mixer(entry: registry.Entry, config: Any) -> dict[str, Any]:
    options = {"method": entry.name, **to_dict(config)}
    if "router" in options:
        options["router"] = _expanded_router(options["router"])
    return options


def _expanded_router(spec: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(spec)
    method = options.pop("method", "top_k")
    entry = registry.find(str(method), ROUTER_FAMILY)
    config = from_dict(entry.module().Config, options, f"router {entry.name}")
    return {"method": entry.name, **to_dict(config)}
