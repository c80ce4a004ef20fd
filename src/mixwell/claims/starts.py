"""One start for all that a claim compares: routers whose logits spread alike, layers whose outputs have one size.

A method's own constants decide both otherwise: fresh logits spread by 0.04 to 1.7, outputs differ ten-thousandfold.

Legend: T tokens, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.mixing import Mixed, Router

SPREAD = 1.0  # of a token's logits: what a linear map started at 1 / sqrt(fan in) gives of tokens at root mean square 1
PASSES = 6  # a layer of two maps in a row does not grow in proportion to one of them

# logits grow in proportion to all of one row's parameters that a router has; first row that is there
OF_LOGITS = (("outer", "outer_bias"), ("node_weight", "local_weight"), ("attribute_weight", "attribute_bias"),
             ("weight", "condition_weight"))
# the last map of a layer, by the end of its name; first one that is there
OF_OUTPUTS = ("down_proj", "value_proj", "values", "down.tensors.0", "out.weight")


@torch.no_grad()
def level_inside(mixers: Iterable[nn.Module], run: Callable[[], Any], size: float) -> None:
    """Level the mixers of a network one after another on what `run`, a forward pass of the network, hands them."""
    for mixer in mixers:
        found: list[tuple[Any, ...]] = []

        def keep(module: nn.Module, given: tuple[Any, ...], found: list[tuple[Any, ...]] = found) -> None:
            found.append(given)

        hook = mixer.register_forward_pre_hook(keep)
        try:
            run()
        finally:
            hook.remove()
        level(mixer, found[0], size)


@torch.no_grad()
def level(mixer: Any, given: Sequence[Any], size: float) -> None:
    """Scale a mixer so that its routers' logits spread by `SPREAD`, where it has such, and its output is `size`.

    `given` are the arguments on which both are measured. Raises `ValueError` for a mixer that gives zeros.
    """
    was_training = mixer.training
    mixer.eval()
    for router in [module for module in mixer.modules() if isinstance(module, Router)]:
        _level_router(router, _logits(mixer, router, given))
    for _ in range(PASSES):
        mixed = mixer(*given)
        y = mixed.y_TD if isinstance(mixed, Mixed) else mixed.y_BTD
        _size(mixer, root_mean_square(y), size)
    mixer.train(was_training)


def _logits(mixer: nn.Module, router: Router, given: Sequence[Any]) -> Tensor | None:
    """What a router inside the mixer gives on its first call; None where it is not called."""
    found: list[Tensor | None] = []
    hook = router.register_forward_hook(lambda module, inner, routing: found.append(routing.logits_TE))
    try:
        mixer(*given)
    finally:
        hook.remove()
    return found[0] if found else None


def _level_router(router: Router, logits_TE: Tensor | None) -> None:
    """A router by what its logits are now; one without logits, or with equal ones, stays as it is."""
    now = 0.0 if logits_TE is None else spread(logits_TE)
    if not now:
        return
    named = dict(router.named_parameters())
    if "temperature" in named:
        named["temperature"].mul_(now / SPREAD)
        return
    for names in OF_LOGITS:
        found = [named[name] for name in names if name in named]
        if found:
            _scale(found, SPREAD / now)
            return


def _size(mixer: nn.Module, now: float, size: float) -> None:
    """Scale the last map of a mixer whose output is `now` so that it is `size`; raises `ValueError` at 0."""
    if not now:
        raise ValueError(f"{type(mixer).__name__} gives zeros; expected an output that can be scaled")
    named = dict(mixer.named_parameters())
    for end in OF_OUTPUTS:
        found = [named[name] for name in named if name.endswith(end)]
        if found:
            _scale(found, size / now)
            return
    raise ValueError(f"{type(mixer).__name__} has no parameter that ends with one of {', '.join(OF_OUTPUTS)}")


def _scale(parameters: Sequence[Tensor], factor: float) -> None:
    for parameter in parameters:
        parameter.mul_(factor)


def spread(logits_TE: Tensor) -> float:
    """Standard deviation of a token's logits over its experts, root of the mean square over tokens; masked ones (of
    minus infinity) do not count."""
    open_TE = logits_TE.isfinite()
    kept_TE = logits_TE.masked_fill(~open_TE, 0.0)
    count_T1 = open_TE.sum(1, keepdim=True).clamp_min(1)
    mean_T1 = kept_TE.sum(1, keepdim=True) / count_T1
    off_TE = kept_TE - mean_T1
    squares_TE = off_TE.double().square()
    squares = squares_TE[open_TE]
    return float(squares.mean().sqrt())


def root_mean_square(y: Tensor) -> float:
    """Root of the mean square of all entries."""
    mean = y.double().square().mean()
    return float(mean.sqrt())
