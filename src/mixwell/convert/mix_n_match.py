"""Mix'n'Match: a smaller dense model cut out of a nested one, with a width of its own in each layer.

**Equation:** layer l keeps its first m_l hidden units: W_gate[:m_l], W_up[:m_l], W_down[:, :m_l].
**Shapes:** gate_up_proj [2 F, D] -> [2 m, D]; down_proj [D, F] -> [D, m].
**Reference:** Devvrit et al. 2023, MatFormer (2310.07707), section 3.2.
**Differs:** none; dense blocks that were not trained nested can be cut, too, and lose more.
**Fails when:** the model was not trained nested: which units come first means nothing then.
**Cost:** none; no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.convert._parts import DENSE, Rewrite, dense_example, expert_units, is_method
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method

NESTED = "experts.layers.matformer"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of cutting a nested model."""

    # m: hidden units kept, one number for all layers or one for each, at least 1
    widths: int | tuple[int, ...]

    def __post_init__(self) -> None:
        given = self.widths if isinstance(self.widths, tuple) else (self.widths,)
        for width in given:
            if width < 1:
                raise ValueError(f"widths has {width}; expected at least 1")


def promises(config: Config) -> dict[str, float]:
    """Nothing: units that go are missed."""
    return {}


def width_of(layer: int, spec: Mapping[str, Any], config: Config, count: int) -> int:
    """Hidden units that a layer keeps; raises `MixwellError` for more than it has."""
    widths = config.widths
    if isinstance(widths, tuple) and len(widths) != count:
        raise MixwellError(f"{len(widths)} widths for {count} layers; give one for each, or one for all.")
    width = widths[layer] if isinstance(widths, tuple) else widths
    if width > spec["hidden_dim"]:
        raise MixwellError(f"layer {layer} has {spec['hidden_dim']} hidden units; expected a width of that at most, "
                           f"got {width}.")
    return width


def is_plain(spec: Mapping[str, Any]) -> bool:
    """Whether a layer is nested, or dense with silu, a gate and no biases."""
    if is_method(spec, NESTED):
        return True
    silu = spec.get("activation", "silu") == "silu"
    gated = spec.get("gated", True)
    biased = spec.get("bias", False)
    return is_method(spec, DENSE) and silu and gated and not biased


@method(title="Mix'n'Match of nested blocks", paper="MatFormer: Nested Transformer for Elastic Inference", year=2023)
def mix_n_match(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """Cut every nested or dense block to its width. Draws nothing from `generator`.

    Raises `MixwellError` where a layer is neither, or has fewer units.
    """
    work = Rewrite(checkpoint, "cutting")
    count = len(work.specs)
    for layer, spec in enumerate(work.specs):
        if not is_plain(spec):
            raise MixwellError(f"layer {layer} is {spec.get('method')}; Mix'n'Match cuts nested and dense blocks with "
                               "silu, a gate and no biases.")
        width = width_of(layer, spec, config, count)
        units = torch.arange(width)
        gate_up, down = work.take_block(layer)
        cut = expert_units(gate_up, down, units)
        work.put_block(layer, cut)
        work.specs[layer] = {"method": DENSE, "hidden_dim": width}
    return work.result()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, cut to half its width and to three units."""
    checkpoint = dense_example(generator)
    return {"checkpoint": checkpoint, "config": Config(widths=(4, 3)), "generator": generator}
