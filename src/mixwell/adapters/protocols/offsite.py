"""Offsite tuning: outer layers are tuned around a thinned middle, and put back around the whole one.

**Equation:** a network A_1 . M . A_2 of L layers, A_1 and A_2 the first and last `ends`; its emulator A_1 . M* . A_2
    keeps of M the layers round(i (|M| - 1) / (n - 1)), i = 0..n - 1. M* may be distilled: next-token loss + `match` *
    mean(((t - s) / rms(t))^2), t and s what M and M* make of the same input, rms(t) one number.
    Whoever has the data trains A_1 and A_2 in the emulator; plugged: A_1' . M . A_2'.
**Shapes:** checkpoints of L and 2 `ends` + n layers; t, s [B, T, D].
**Reference:** Xiao et al. 2023, Offsite-Tuning (2302.04870), and its released code.
**Differs:** the tuning's loop is the caller's: `trained` says which names move. In distillation A_1 is the same in
    both, so t is read off the whole network.
**Fails when:** the emulator is so good that it serves without its owner, or so bad that what is tuned around it does
    not fit the whole: look at the emulator's loss beside the plugged one's.
**Cost:** a step of 2 `ends` + n layers in place of L.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least, check_not_negative

LAYER = re.compile(r"layers\.(\d+)\.(.+)")
MIXERS = ("sequence_mixer", "channel_mixer")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of offsite tuning."""

    ends: int = 2  # layers at either end that are tuned
    middle: int = 8  # n, layers of the emulator between them
    match: float = 30.0  # coefficient of the middle's distance in distillation, 0 or more

    def __post_init__(self) -> None:
        check_least(self, ends=1, middle=1)
        check_not_negative(self, "match")


def kept(layers: int, config: Config) -> list[int]:
    """Numbers of the layers that the emulator has; `MixwellError` where the middle is no longer than n."""
    inside = layers - 2 * config.ends
    if inside <= config.middle:
        raise MixwellError(f"{layers} layers leave {inside} between ends of {config.ends}, and the emulator would keep "
                           f"{config.middle}; expected fewer: lower middle or ends.")
    apart = max(config.middle - 1, 1)
    chosen = [round(i * (inside - 1) / apart) for i in range(config.middle)]
    first = range(config.ends)
    last = range(layers - config.ends, layers)
    inner = [config.ends + place for place in chosen]
    return [*first, *inner, *last]


@method(title="Offsite tuning", paper="Offsite-Tuning: Transfer Learning without Full Model", year=2023)
def offsite(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """The emulator, as it is before distillation. Raises `MixwellError` for a network with too few layers."""
    arch = checkpoint.arch
    places = kept(arch["num_layers"], config)
    number = {place: own for own, place in enumerate(places)}
    tensors = {}
    for name, value in checkpoint.tensors.items():
        found = LAYER.fullmatch(name)
        if found is None:
            tensors[name] = value
        elif int(found[1]) in number:
            own = number[int(found[1])]
            tensors[f"layers.{own}.{found[2]}"] = value
    changed = {name: _thinned(arch[name], places) for name in MIXERS if name in arch}
    fewer = {**arch, **changed, "num_layers": len(places)}
    return checkpoint.derive(arch=fewer, tensors=tensors)


def _thinned(spec: Any, places: Sequence[int]) -> Any:
    """A mixer's options as they are for every layer, or those of the layers kept."""
    if isinstance(spec, Mapping):
        return spec
    return [spec[place] for place in places]


def trained(names: Sequence[str], layers: int, config: Config) -> list[str]:
    """Of an emulator's parameters of so many layers, those that are tuned: the layers at its ends."""
    last = layers - config.ends
    found = []
    for name in names:
        place = LAYER.fullmatch(name)
        if place is None:
            continue
        number = int(place[1])
        if number < config.ends or number >= last:
            found.append(name)
    return found


def plugged(whole: Checkpoint, tuned: Checkpoint, config: Config) -> Checkpoint:
    """The whole network with the emulator's tuned ends; `MixwellError` where they are not its own in shape."""
    layers, fewer = int(whole.arch["num_layers"]), int(tuned.arch["num_layers"])
    places = kept(layers, config)
    if fewer != len(places):
        raise MixwellError(f"the emulator has {fewer} layers; expected {len(places)} of a network of {layers}.")
    tensors = dict(whole.tensors)
    for name in trained(list(tuned.tensors), fewer, config):
        _, number, rest = name.split(".", 2)
        place = places[int(number)]
        there = f"layers.{place}.{rest}"
        value = tuned.tensors[name]
        if there not in tensors or tensors[there].shape != value.shape:
            raise MixwellError(f"{there}: the whole network has no place of shape {list(value.shape)} for it.")
        tensors[there] = value
    return whole.derive(tensors=tensors)


def distance(teacher_BTD: Tensor, student_BTD: Tensor) -> Tensor:
    """mean(((t - s) / rms(t))^2)."""
    square = teacher_BTD.square().mean()
    off = teacher_BTD - student_BTD
    return off.square().mean() / square


def distilled(whole: nn.Module, emulator: nn.Module, batches: Sequence[Tensor], config: Config, lr: float = 1e-4,
              ) -> list[float]:
    """Bring the emulator's middle closer to the whole network's, in place, a step of Adam a batch of ids [B, T].

    The middle alone moves. The losses are handed back.
    """
    network: Any = emulator
    last = len(network.layers) - config.ends
    middle = network.layers[config.ends : last]
    moving = list(middle.parameters())
    optimizer = torch.optim.Adam(moving, lr=lr)
    losses = []
    for tokens_BT in batches:
        with torch.no_grad():
            _, teacher_BTD = _behind_middle(whole, tokens_BT, config)
        nats, student_BTD = _behind_middle(emulator, tokens_BT, config)
        loss = nats + config.match * distance(teacher_BTD, student_BTD)
        grads = torch.autograd.grad(loss, moving)
        for parameter, grad in zip(moving, grads):
            parameter.grad = grad
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad()
    return losses


def _behind_middle(network: Any, tokens_BT: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """(next-token loss, what the last layer before the end gives)."""
    seen: list[Tensor] = []
    last = len(network.layers) - config.ends - 1

    def keep(_: nn.Module, given: Any, result: Any) -> None:
        seen.append(result[0])

    hook = network.layers[last].register_forward_hook(keep)
    try:
        found = network.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    finally:
        hook.remove()
    return found.nats, seen[0]


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five layers of one matrix each, two of the three in the middle kept."""
    tensors = {}
    for i in range(5):
        tensors[f"layers.{i}.w"] = torch.randn(2, 2, generator=generator)
    mixer = {"method": "swiglu"}
    arch = {"num_layers": 5, "channel_mixer": mixer}
    return {"checkpoint": Checkpoint(arch, tensors), "config": Config(ends=1, middle=2)}
