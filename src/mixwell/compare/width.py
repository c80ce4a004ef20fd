"""Equal bytes of weights: the hidden width at which a recipe's model just fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mixwell.compare.variants import ancestors
from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.run import recipe as recipes
from mixwell.run.costs import Costs
from mixwell.run.recipe import Recipe

STEP = 8  # widths are multiples of this: what vector units like
LARGEST = 1 << 16


def fitted(chosen: Recipe, stage: str, size_bytes: float, threads: int) -> Recipe:
    """The recipe with the largest `hidden_dim` (a multiple of 8) at which the model of `stage` takes at most
    `size_bytes`; raises `MixwellError` where the width is not the recipe's to choose or the narrowest model is too
    large."""
    path = _width_path(chosen)

    def fits(width: int) -> bool:
        made = recipes.changed(chosen, {path: width})
        return weight_bytes(made, stage, threads) <= size_bytes

    if not fits(STEP):
        raise MixwellError(f"--budget bytes: with {path} {STEP} the model of {stage} still takes more than "
                           f"{size_bytes:.0f} bytes; raise it, or make the model smaller.")
    low, high = STEP, 2 * STEP
    while fits(high):
        low, high = high, 2 * high
        if high > LARGEST:
            raise MixwellError(f"--budget bytes: {path} does not decide how large the model of {stage} is.")
    while high - low > STEP:
        middle = (low + high) // (2 * STEP) * STEP
        if fits(middle):
            low = middle
        else:
            high = middle
    return recipes.changed(chosen, {path: low})


def weight_bytes(chosen: Recipe, stage: str, threads: int) -> int:
    """Bytes of the weights that `stage` leaves behind; a training in bf16 leaves its matrices in bf16."""
    line = ancestors(recipes.stages(chosen), stage)
    shape = Costs(line, threads).shape(stage)
    trained = [s.config.dtype for s in line if s.kind == "train"]
    if trained and trained[-1] == "bf16":
        shape = LanguageModel.from_checkpoint(shape, torch.bfloat16).to_checkpoint()
    sizes = [tensor.numel() * tensor.element_size() for tensor in shape.tensors.values()]
    return sum(sizes)


def _width_path(chosen: Recipe) -> str:
    model: Any = chosen.model
    mixer = model.get("channel_mixer", {}) if isinstance(model, Mapping) else None
    if not isinstance(mixer, Mapping):
        raise MixwellError("--budget bytes: the width is changed to fit, and this recipe's model has none to change "
                           "(it is read from a folder, or lists a mixer for each layer); leave it out.")
    return "model.channel_mixer.hidden_dim" if "hidden_dim" in mixer else "model.hidden_dim"
