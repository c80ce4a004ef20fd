"""Parts of a model that a training leaves as they are, chosen by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError, suggest
from mixwell.kernels.packing import CHANGES

PREFIX = "model."  # may stand before a name, as it does in the files of many models


class Frozen:
    """Takes what the patterns name out of a model's training, until `release`.

    A pattern (`embed*`, `layers.0.*`, `*router*`) is matched against whole names of parameters and buffers, with
    `*`, `?` and `[...]` as in file names; a leading `model.` may be written. One that fits no name raises
    `MixwellError`, and so do patterns that leave nothing to train.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        names = fitting([*parameters, *buffers], patterns)
        self.names = names
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        self._held = [parameters[name] for name in names if name in trained]
        if patterns and len(self._held) == len(trained):
            raise MixwellError(f"freeze: {', '.join(patterns)} leaves nothing to train; name fewer parts.")
        self._kept = [(buffers[name], buffers[name].clone()) for name in names if name in buffers]
        for parameter in self._held:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back the buffers that a router moved after an optimiser step."""
        for buffer, value in self._kept:
            buffer.copy_(value)

    def release(self) -> None:
        """Let the parameters be trained again."""
        for parameter in self._held:
            parameter.requires_grad_(True)


def check_trains(model: nn.Module) -> None:
    """Raise `MixwellError` for a model whose matrices are quantised, where nothing stands beside them to be trained.

    No gradient reaches integers, so that norms and embeddings alone would be trained.
    """
    quantised = []
    for path, layer in model.named_modules():
        if CHANGES in layer._modules:
            return
        quantised += [f"{path}.{name}" for name in getattr(layer, "packable", ()) if _is_quantised(layer, name)]
    if quantised:
        raise MixwellError(f"{quantised[0]} and {len(quantised) - 1} others are quantised, and no gradient reaches "
                           "them: norms and embeddings alone would be trained. Train before compressing, or put an "
                           "adapter beside them (`adapt: lora, merged: false`).")


def _is_quantised(layer: nn.Module, name: str) -> bool:
    weight = getattr(layer, name, None)
    return isinstance(weight, Tensor) and weight.dtype in (torch.int8, torch.uint8)


def fitting(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that one of the patterns fits, in their order; a pattern that fits none raises `MixwellError`."""
    found: set[str] = set()
    for pattern in patterns:
        own = [name for name in names if _fits(name, pattern)]
        if not own:
            near = suggest(pattern.removeprefix(PREFIX), names)
            shown = ", ".join(_shown(names))
            raise MixwellError(f"freeze: no part of the model fits {pattern!r}.{near} Names here: {shown}.")
        found.update(own)
    return [name for name in names if name in found]


def _fits(name: str, pattern: str) -> bool:
    written = name, PREFIX + name
    return any(fnmatchcase(one, pattern) for one in written)


def _shown(names: Sequence[str]) -> list[str]:
    """The names outside layers and those of the first layer, which the others repeat."""
    found = []
    for name in names:
        begin, *rest = name.split(".")
        if begin != "layers" or rest[0] == "0":
            found.append(name)
    return found

