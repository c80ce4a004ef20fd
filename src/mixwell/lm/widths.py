"""The coordinate check: how large a model's activations are after a few steps, over its width.

Trained with Adam from the same seed at several widths, on one batch. Under the maximal update parametrisation (muP)
activations neither grow nor vanish with width, so that a learning rate found on a narrow model serves a wide one; under
the standard one some grow, which the exponents tell.

References: Yang et al. 2022 (2203.03466), table 8, with multipliers taken into starts and rates, which for Adam is the
same; the check is that of the authors' package (mean size of every module's output).

Legend: W widths, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.network import Network
from mixwell.mixing import check_above, check_least
from mixwell.scaling.feature_learning import slope

STANDARD, MAXIMAL = "standard", "maximal update"
LOOKED_UP = ("embed.", "positions.")  # tables: their input is an id, however wide the model is
LOGITS = "logits"
LEAST_STEPS = 2  # at the first step nothing has moved yet
BATCH, LENGTH = 4, 32
HEAD = 16  # width of a head, the same at every width of the model, so that attention needs no rule of its own
Shapes = Mapping[str, tuple[int, ...]]
Configs = Callable[[int], ModelConfig]  # of a width


class Rule(NamedTuple):
    """Factors on a parameter's start and on its learning rate, at one width."""

    start: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """How the check trains; `ValueError` for a value out of range."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # the first is the base, at which both parametrisations are one
    lr: float = 1e-2  # of Adam at the base width: larger than in training, or the start hides what grows
    steps: int = 4
    seeds: int = 2
    most: float = 0.1  # exponent from which on an activation is said to grow

    def __post_init__(self) -> None:
        rising = sorted(set(self.widths))
        if list(self.widths) != rising or len(rising) < 2 or rising[0] < 1:
            raise ValueError(f"widths are {self.widths}; expected two or more, each above the one before")
        check_least(self, steps=LEAST_STEPS)
        check_above(self, lr=0, seeds=0, most=0)


def decoder(width: int) -> ModelConfig:
    """A small decoder of this width, with heads of 16; another width than a multiple of it raises `MixwellError`."""
    if width % HEAD:
        raise MixwellError(f"the width {width} has no whole number of heads of {HEAD}; take a multiple.")
    mixer = {"method": "experts.layers.swiglu", "hidden_dim": 2 * width}
    return ModelConfig(vocab_size=256, dim=width, num_layers=2, num_heads=width // HEAD, channel_mixer=mixer)


def rules(config_of: Configs, base: int, width: int) -> dict[str, Rule]:
    """muP's factors for Adam by parameter, told by which of its sides grow with the model.

    With m = width over base: a matrix both of whose sides grow, start m^-1/2 and rate m^-1; one whose inputs alone grow
    (head, router), m^-1 both; tables that are looked up, vectors and the rest as they are. Tied embeddings, whose one
    matrix would need two rules, raise `MixwellError`.
    """
    config = config_of(width)
    if config.tie_embeddings:
        raise MixwellError("the head shares the embedding's weights, which muP starts and moves apart; untie them.")
    narrow = shapes(config_of(base))
    twice = shapes(config_of(2 * base))
    ratio = width / base
    found = {}
    for name, shape in narrow.items():
        grows = [a != b for a, b in zip(shape, twice[name])]
        found[name] = _rule(name, grows, ratio)
    return found


def _rule(name: str, grows: Sequence[bool], ratio: float) -> Rule:
    if len(grows) < 2 or not grows[-1] or name.startswith(LOOKED_UP):
        return Rule(1.0, 1.0)
    if grows[-2]:
        return Rule(ratio**-0.5, 1 / ratio)
    return Rule(1 / ratio, 1 / ratio)


def shapes(config: ModelConfig) -> Shapes:
    """Shape of every parameter; nothing is allocated."""
    with torch.device("meta"):
        model = Network(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def sizes(config: ModelConfig, factors: Mapping[str, Rule], check: Check, seed: int) -> dict[str, list[float]]:
    """Mean size of every module's output before each step, [S] by module."""
    model = Network(config, generator(seed, "coordinates", config.dim))
    groups = _started(model, factors, check.lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    ids_BT = torch.randint(config.vocab_size, (BATCH, LENGTH + 1), generator=generator(seed, "coordinates"))
    inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    found: dict[str, list[float]] = {}
    for _ in range(check.steps):
        for name, size in _seen(model, inputs_BT).items():
            found.setdefault(name, []).append(size)
        optimizer.zero_grad()
        loss = model.loss(inputs_BT, targets_BT)
        loss.nats.backward()
        optimizer.step()
    return found


@torch.no_grad()
def _started(model: nn.Module, factors: Mapping[str, Rule], lr: float) -> list[dict[str, Any]]:
    """Scale what a model starts with; a group of the optimizer for each parameter."""
    groups = []
    for name, parameter in model.named_parameters():
        rule = factors.get(name, Rule(1.0, 1.0))
        parameter.mul_(rule.start)
        groups.append({"params": [parameter], "lr": lr * rule.rate})
    return groups


@torch.no_grad()
def _seen(model: Network, inputs_BT: Tensor) -> dict[str, float]:
    """Mean size of what the embedding, every mixer, every layer and the head give."""
    seen: dict[str, float] = {}
    hooks = []
    for name, module in _looked_at(model).items():
        hooks.append(module.register_forward_hook(_noting(seen, name)))
    try:
        logits_BTV = model(inputs_BT).logits_BTV
    finally:
        for hook in hooks:
            hook.remove()
    return {**seen, LOGITS: _size(logits_BTV)}


def _looked_at(model: Network) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"embed": model.embed}
    for place, layer in enumerate(model.layers):
        for part in ("sequence_mixer", "channel_mixer"):
            found[f"layers.{place}.{part}"] = getattr(layer, part)
    found["norm"] = model.norm
    return found


def _noting(seen: dict[str, float], name: str) -> Callable[..., None]:
    def note(module: nn.Module, given: Any, out: Any) -> None:
        parts = [out] if isinstance(out, Tensor) else out
        first, *_ = (part for part in parts if isinstance(part, Tensor))
        seen[name] = _size(first)

    return note


def _size(x: Tensor) -> float:
    return float(x.float().abs().mean())


def coordinates(check: Check, config_of: Configs = decoder) -> dict[str, Any]:
    """The check in both parametrisations, as plain data: sizes by module, width and step, and their exponents."""
    found: dict[str, Any] = {"widths": list(check.widths), "steps": check.steps, "lr": check.lr, "most": check.most}
    base = check.widths[0]
    for name in (STANDARD, MAXIMAL):
        tables = []
        for width in check.widths:
            factors = rules(config_of, base, width) if name == MAXIMAL else {}
            table = _over_seeds(config_of(width), factors, check)
            tables.append(table)
        found[name] = {}
        for module in tables[0]:
            rows_WS = [table[module] for table in tables]
            found[name][module] = _told(check, rows_WS)
    return found


def _over_seeds(config: ModelConfig, factors: Mapping[str, Rule], check: Check) -> dict[str, np.ndarray]:
    """The mean of `sizes` over seeds, [S] by module."""
    runs = [sizes(config, factors, check, seed) for seed in range(check.seeds)]
    found = {}
    for module in runs[0]:
        rows = [run[module] for run in runs]
        found[module] = np.mean(rows, 0)
    return found


def _told(check: Check, rows_WS: Sequence[np.ndarray]) -> dict[str, Any]:
    """Sizes [W, S], and the exponent of width that they follow from the second step on, where it is largest."""
    table_WS = np.stack(rows_WS)
    start, *moved = (slope(check.widths, column_W) for column_W in table_WS.T)
    largest = max(moved)
    return {"sizes": table_WS.tolist(), "exponent": largest, "start": start}


def grown(found: Mapping[str, Any], parametrisation: str) -> list[str]:
    """The modules whose activations grow with width."""
    most = found["most"]
    return [module for module, one in found[parametrisation].items() if one["exponent"] > most]
