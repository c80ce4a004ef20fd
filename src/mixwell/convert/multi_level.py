"""Multi-level training: a model halved by averaging neighbours, and doubled back into the one it came from.

**Equation:** down: pairs of neighbouring channels, heads, hidden units and layers become one; W' = B W A, B the mean
    over pairs of outputs, A the sum over pairs of inputs. up: each becomes two; outputs are copied, inputs copied and
    halved, layers copied;  W = (1 - a) W_before + a W_up, in which a < 1 lets twins part.
**Shapes:** every width of D, H, G, F and the number of layers -> half, or double; heads keep their width P.
**Reference:** Zou et al. 2024, A Multi-Level Framework for Accelerating Training Transformer Models (2404.07999), and
    the authors' code for the maps and for a.
**Differs:** a tied head halves the embeddings, as in the source, whose residual stream then starts halved, too; here
    `embed_scale` doubles it back, so that width alone changes no function on the way up. Pairs are neighbours; one of
    the source's settings pairs layer i with i + 6. Optimiser states are not carried, as there.
**Fails when:** a is 1: twins stay identical whatever is trained; or the small model has stopped learning when it ends.
**Cost:** none; no forward pass. A halved model takes about an eighth of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.convert._parts import ACCOUNT, dense_example, refuse_quantised
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method

Role = tuple[int, Literal["in", "out"], bool]  # axis from the end, what it stands for, whether whole heads pair up
OUT: Role = (-1, "out", False)
OUT_HEADS: Role = (-1, "out", True)
MATRIX: tuple[Role, ...] = ((-2, "out", False), (-1, "in", False))
VECTOR: tuple[Role, ...] = (OUT,)
ROLES: Mapping[str, tuple[Role, ...]] = {  # of tensors by their names below the layer
    "embed.weight": VECTOR, "positions.weight": VECTOR, "norm.weight": VECTOR, "norm.bias": VECTOR,
    "head.weight": ((-1, "in", False),), "sequence_norm.weight": VECTOR, "sequence_norm.bias": VECTOR,
    "channel_norm.weight": VECTOR, "channel_norm.bias": VECTOR,
    "sequence_mixer.qkv.weight": ((-2, "out", True), (-1, "in", False)), "sequence_mixer.qkv.bias": (OUT_HEADS,),
    "sequence_mixer.out.weight": ((-2, "out", False), (-1, "in", True)), "sequence_mixer.out.bias": VECTOR,
    "sequence_mixer.q_norm.weight": (), "sequence_mixer.k_norm.weight": (),
    "channel_mixer.gate_up_proj": MATRIX, "channel_mixer.down_proj": MATRIX,
    "channel_mixer.router.weight": ((-1, "in", False),)}
MIXERS = ("swiglu", "moe", "attention")  # by the last part of their names
HEADS = {"num_heads", "num_kv_heads", "head_dim"}  # options that are read from the architecture's own fields alone
WIDTHS = ("dim", "num_heads", "num_kv_heads", "hidden_dim")  # options that halve and double


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a step between levels."""

    way: Literal["down", "up"] = "down"  # to half the size, or to double
    width: bool = True  # channels, heads and hidden units take part
    depth: bool = True  # layers take part
    before: str | None = None  # up: folder or stage of the model that went down, W_before
    share: float = 0.25  # a, up: above 0, up to 1; below 1 it takes `before`

    def __post_init__(self) -> None:
        if not self.width and not self.depth:
            raise ValueError("neither width nor depth takes part; expected one of the two")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected above 0, up to 1")
        mixes = self.way == "up" and self.share < 1
        if mixes != (self.before is not None):
            raise ValueError(f"before is {self.before!r} on the way {self.way} with share {self.share}; expected a "
                             "model exactly on the way up with a share below 1")


def needs(config: Config) -> Needs:
    """The model that went down, on the way up."""
    return Needs(models=() if config.before is None else (config.before,))


def promises(config: Config) -> dict[str, float]:
    """The same logits to rounding where a model is doubled in width alone, and nothing is mixed in."""
    same = config.way == "up" and config.share == 1 and not config.depth
    return {"max_logit_error": 1e-3, "kl_nats": 1e-6} if same else {}


def halved(weight: Tensor, axis: int, role: str, unit: int) -> Tensor:
    """Neighbouring runs of `unit` along an axis, two by two: their mean for outputs, their sum for inputs."""
    place = axis % weight.ndim
    pairs = weight.unflatten(place, (-1, 2, unit))
    joined = pairs.mean(place + 1) if role == "out" else pairs.sum(place + 1)
    return joined.flatten(place, place + 1)


def doubled(weight: Tensor, axis: int, role: str, unit: int) -> Tensor:
    """Each run of `unit` along an axis twice, halved for inputs."""
    place = axis % weight.ndim
    runs = weight.unflatten(place, (-1, unit))
    twice = runs.repeat_interleave(2, place).flatten(place, place + 1)
    return twice if role == "out" else twice / 2


def resized(weight: Tensor, name: str, arch: Mapping[str, Any], way: str) -> Tensor:
    """A tensor in half or double the width, float32 or better; `name` is that below its layer."""
    move = halved if way == "down" else doubled
    for axis, role, whole_heads in ROLES[name]:
        unit = head_width(arch) if whole_heads else 1
        weight = move(weight, axis, role, unit)
    if name == "embed.weight" and arch.get("tie_embeddings"):  # it is a head, too, whose inputs are summed
        weight = weight * 2 if way == "down" else weight / 2
    return weight


def head_width(arch: Mapping[str, Any]) -> int:
    """P, which stays."""
    given = arch.get("head_dim")
    return int(given or arch["dim"] // arch["num_heads"])


def layer_and_rest(name: str) -> tuple[int | None, str]:
    """`layers.3.channel_mixer.down_proj` -> (3, `channel_mixer.down_proj`); None for what is in no layer."""
    if not name.startswith("layers."):
        return None, name
    _, layer, rest = name.split(".", 2)
    return int(layer), rest


def resized_options(options: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Options with their widths halved or doubled. Raises `MixwellError` for an odd one on the way down."""
    found = dict(options)
    for name in WIDTHS:
        value = found.get(name)
        if value is None:
            continue
        if way == "down" and value % 2:
            raise MixwellError(f"{name} is {value}; expected an even number to halve.")
        found[name] = value // 2 if way == "down" else value * 2
    return found


def _mixers(arch: Mapping[str, Any], kind: str, config: Config) -> Any:
    """The options of the channel or sequence mixers behind the step, for all layers or one entry each."""
    spec = arch[kind]
    if isinstance(spec, Mapping):
        return resized_options(spec, config.way) if config.width else dict(spec)
    listed = [resized_options(one, config.way) if config.width else dict(one) for one in spec]
    if not config.depth:
        return listed
    if config.way == "up":
        return [one for one in listed for _ in range(2)]
    if listed[::2] != listed[1::2]:
        raise MixwellError(f"neighbouring layers differ in their {kind}; pairs of layers need the same. Set depth: "
                           "false.")
    return listed[::2]


def resized_arch(arch: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The architecture behind the step. Raises `MixwellError` for odd numbers on the way down."""
    found = resized_options(arch, config.way) if config.width else dict(arch)
    kinds = [kind for kind in ("channel_mixer", "sequence_mixer") if kind in arch]
    found |= {kind: _mixers(arch, kind, config) for kind in kinds}
    if config.width and arch.get("tie_embeddings"):
        factor = 0.5 if config.way == "down" else 2.0
        found["embed_scale"] = arch.get("embed_scale", 1.0) * factor
    layers = arch["num_layers"]
    if config.depth and config.way == "down" and layers % 2:
        raise MixwellError(f"num_layers is {layers}; expected an even number to halve, or depth: false.")
    if config.depth:
        found["num_layers"] = layers // 2 if config.way == "down" else layers * 2
    return found | {"architecture": "auto"}


def check_known(checkpoint: Checkpoint) -> None:
    """Raise `MixwellError` for a model with something whose halves and doubles are not known."""
    refuse_quantised(checkpoint.tensors, "a step between levels")
    for name in checkpoint.tensors:
        if layer_and_rest(name)[1] not in ROLES:
            raise MixwellError(f"{name} has no known half; a step between levels takes plain attention, dense blocks "
                               "and mixtures without shared experts.")
    for kind in ("channel_mixer", "sequence_mixer"):
        spec = checkpoint.arch.get(kind, ())
        for one in (spec,) if isinstance(spec, Mapping) else spec:
            _check_mixer(one, kind)


def _check_mixer(spec: Mapping[str, Any], kind: str) -> None:
    method_name = str(spec["method"]).rpartition(".")[2]
    own_heads = HEADS & spec.keys()
    if method_name not in MIXERS or spec.get("qk_norm") == "full" or own_heads:
        raise MixwellError(f"{kind} {spec} has no known half; a step between levels takes plain attention, dense "
                           "blocks and mixtures without shared experts.")


def stepped(checkpoint: Checkpoint, config: Config) -> dict[str, Tensor]:
    """The tensors behind the step, float32 or better."""
    groups: dict[str, list[Tensor]] = {}
    for name, weight in checkpoint.tensors.items():
        layer, rest = layer_and_rest(name)
        wide = weight if weight.dtype.itemsize > 4 else weight.float()
        moved = resized(wide, rest, checkpoint.arch, config.way) if config.width else wide
        for target in targets(name, layer, rest, config):
            groups.setdefault(target, []).append(moved)
    return {name: sum(parts[1:], parts[0]) / len(parts) for name, parts in groups.items()}


def targets(name: str, layer: int | None, rest: str, config: Config) -> list[str]:
    """Names behind the step of what a tensor goes into."""
    if layer is None or not config.depth:
        return [name]
    if config.way == "down":
        return [f"layers.{layer // 2}.{rest}"]
    return [f"layers.{2 * layer + twin}.{rest}" for twin in range(2)]


def mixed(before: Checkpoint, up: Mapping[str, Tensor], share: float, name: str) -> dict[str, Tensor]:
    """(1 - a) W_before + a W_up. Raises `MixwellError` where the two are not of one shape."""
    found = {}
    for tensor, weight in up.items():
        other = before.tensors.get(tensor)
        if other is None or other.shape != weight.shape:
            shape = None if other is None else tuple(other.shape)
            raise MixwellError(f"{name} has {tensor} of shape {shape}, the doubled model {tuple(weight.shape)}; name "
                               "the model that went down.")
        found[tensor] = (1 - share) * other.to(weight.dtype) + share * weight
    return found


@method(title="A step between levels of size",
        paper="A Multi-Level Framework for Accelerating Training Transformer Models", year=2024)
def multi_level(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                calibration: Calibration) -> Checkpoint:
    """Halve a model, or double it into the one that went down. Draws nothing from `generator`.

    Raises `MixwellError` for a model with odd widths, or with something whose half is not known.
    """
    check_known(checkpoint)
    arch = resized_arch(checkpoint.arch, config)
    wide = stepped(checkpoint, config)
    if config.before is not None:
        before = calibration.model(config.before)
        wide = mixed(before, wide, config.share, config.before)
    dtypes = {layer_and_rest(name)[1]: weight.dtype for name, weight in checkpoint.tensors.items()}
    tensors = {name: weight.to(dtypes[layer_and_rest(name)[1]]).contiguous() for name, weight in wide.items()}
    account = {"used": list(checkpoint.tensors), "dropped": {}}
    return checkpoint.derive(arch=arch, tensors=tensors, record={ACCOUNT: account})


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers and width six, halved."""
    return {"checkpoint": dense_example(generator), "config": Config(), "generator": generator}
