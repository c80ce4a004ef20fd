"""ZeroQ: no data. What stands in for it is made from the model itself; bits by KL, off a frontier of sizes.

**Equation:** networks with batch norm (`distilled`): min over x of sum_l |mean_l(x) - mu_l|^2 + |std_l(x) -
    sigma_l|^2, mu and sigma being those that norm l keeps, and for x itself 0 and 1; Adam from N(0, 1). Bits:
    Omega_ub = mean KL(M(x) || M with matrix u in b bits); all mixes that none beats in (size, sum Omega) by dynamic
    programming, of which the one of least harm within the budget.
**Shapes:** x [N, C, ...]; mean, std of each image and channel over its positions; Omega [U, B].
**Reference:** Cai et al. 2020 (2001.00281), equations 2 to 5, and the authors' code, which has no search of bits.
**Differs:** a language model keeps no statistics to match: x is text that it writes itself, its first token drawn
    evenly. Weights alone are rounded, symmetric in groups, where theirs rounds activations, too. sigma = sqrt(var +
    1e-6).
**Fails when:** the model writes badly. Matched image by image, as published, deep ranges come out narrow;
    `per_image=False` matches the batch.
**Cost:** as many passes as matrices times widths, over `tokens`; bits as budgeted, with 16 / G for scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._allocation import frontier, within
from mixwell.precision._divergence import divergences, own_text
from mixwell.precision._parts import named, quantised_example
from mixwell.precision.bits import Budget, Place, Sensitivities, at_width, part, places_of

TINY = 1e-6
SHOWN = 32  # points of the frontier that the lineage keeps


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of ZeroQ."""

    tokens: int = 1024  # that the model writes
    finest: int = 16384  # sizes that the frontier tells apart

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finest < 2:
            raise ValueError(f"finest is {self.finest}; expected at least 2")


def needs(config: Config) -> Needs:
    """No text: the model writes its own."""
    return Needs()


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def mismatch(x: Tensor, mean_C: Tensor, std_C: Tensor, per_image: bool = True) -> Tensor:
    """How far the statistics of x [N, C, ...] are from these: sums of squares over channels, mean over images."""
    if per_image and x.ndim < 3:
        raise ValueError(f"x is {list(x.shape)}: an image without positions has no statistics; per_image=False takes "
                         "those of the batch")
    positions = range(2, x.ndim)
    over = tuple(positions) if per_image else (0, *positions)
    own_mean = x.mean(over)
    variance = x.var(over, correction=0)
    own_std = (variance + TINY).sqrt()
    moved = (own_mean - mean_C).square()
    widened = (own_std - std_C).square()
    apart = moved + widened
    return apart.sum(-1).mean()


def distilled(model: nn.Module, shape: Sequence[int], *, count: int = 32, steps: int = 500, lr: float = 0.5,
              per_image: bool = True, generator: torch.Generator) -> Tensor:
    """`count` inputs of `shape` [C, ...] whose statistics in `model` are those that its batch norms keep.

    The model is left in the mode that it was in. Raises ValueError for one without batch norm.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm that keeps statistics; there is nothing to match")
    x = torch.randn(count, *shape, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([x], lr)
    slower = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=100, min_lr=1e-4)
    was_training = model.training
    model.eval()
    with _Watched(norms) as watched:
        for _ in range(steps):
            watched.seen.clear()
            model(x)
            loss = mismatch(x, torch.zeros(()), torch.ones(()), per_image) + watched.mismatch(per_image)
            (x.grad,) = torch.autograd.grad(loss, [x])
            optimiser.step()
            slower.step(loss.detach())
    model.train(was_training)
    return x.detach()


class _Watched:
    """Batch norms whose inputs are kept."""

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.seen: list[tuple[_BatchNorm, Tensor]] = []
        self._norms = norms

    def __enter__(self) -> _Watched:
        self._hooks = [norm.register_forward_pre_hook(self._keep) for norm in self._norms]
        return self

    def __exit__(self, *raised: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        self.seen.append((norm, given[0]))

    def mismatch(self, per_image: bool) -> Tensor:
        """Over all norms, of what came last."""
        parts = []
        for norm, x in self.seen:
            mean_C, variance_C = norm.running_mean, norm.running_var
            assert mean_C is not None and variance_C is not None
            std_C = (variance_C + TINY).sqrt()
            parts.append(mismatch(x, mean_C, std_C, per_image))
        return torch.stack(parts).sum()


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Sensitivities:
    """Omega of every matrix and width, on text that the model writes."""
    places = places_of(checkpoint, config)
    written = own_text(checkpoint, config.tokens, calibration, generator)

    def changed(place: Place, width: int) -> Tensor:
        weight = part(checkpoint.tensors, place)
        return at_width(weight, width, config)

    harm_UB = divergences(checkpoint, places, config.widths, changed, written)
    return bits.sensitivities(checkpoint, places, harm_UB, written)


def settle(checkpoint: Checkpoint, found: Sensitivities, config: Config) -> Checkpoint:
    """The checkpoint with the bits of the best mix within the budget; the lineage keeps the frontier."""
    size_UB = bits.sizes(checkpoint, found.places, config.widths)
    budget = bits.room(checkpoint, found.places, config)
    mixes = frontier(found.harm_UB, size_UB, config.finest)
    where = bits.limiting(config)
    best = named(where, within, mixes, budget)
    every = -(-len(mixes) // SHOWN)
    curve = []
    for mix in mixes[::every]:
        curve.append({"bits": mix.size, "harm": mix.harm})
    told = replace(found, record={**found.record, "frontier": curve})
    widths = [config.widths[place] for place in best.choice]
    return bits.in_widths(checkpoint, told, widths, config)


@method(
    title="ZeroQ: bits without data, off a frontier",
    paper="ZeroQ: A Novel Zero Shot Quantization Framework",
    year=2020,
    tags={"codes", "calibrated", "budgeted"},
)
def zeroq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices have bits by KL on the model's own text. `generator` draws the text.

    Raises `MixwellError` as `precision.integers`, and where the budget is too small.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return settle(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, widths=(2, 4, 8))
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
