"""The shapes of the models that a run will make, known before there is one: to tell what they cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.files import digest
from mixwell.run.stages import KINDS, Stage


@dataclass(frozen=True)
class Shape:
    """The shape of a model that a stage will make: what decides it, and a checkpoint of that shape when asked for."""

    key: str
    make: Callable[[], Checkpoint]
    sketch: Callable[[], Checkpoint]  # the same, without numbers where it can be made so


def shapes(stages: Sequence[Stage], vocab_size: int) -> dict[str, Shape]:
    """The shapes of the models of a run by stage, in the order of the stages: inputs come first."""
    found: dict[str, Shape] = {}
    for stage in stages:
        kind = KINDS[stage.kind]
        before = found.get(stage.inputs.get("model", ""))
        if kind.keeps_shape and before is not None:
            found[stage.id] = before
        elif kind.shape is not None:
            found[stage.id] = _shape(stage, before, vocab_size)
    return found


def _shape(stage: Stage, before: Shape | None, vocab_size: int) -> Shape:
    kind = KINDS[stage.kind]
    assert kind.shape is not None
    shaped = kind.shape
    outside = kind.fingerprint(stage)
    key = digest([stage.method, stage.plain_config(), vocab_size, outside, before and before.key])

    def make() -> Checkpoint:
        return shaped(stage, before.make() if before else None, vocab_size)

    def sketch() -> Checkpoint:
        start = before.sketch() if before else None
        found = as_meta(lambda: shaped(stage, start, vocab_size))
        return make() if found is None else found

    return Shape(key, functools.cache(make), functools.cache(sketch))


def as_meta(make: Callable[[], Checkpoint]) -> Checkpoint | None:
    """The checkpoint with shapes and without numbers; None where it cannot be made that way."""
    try:
        with torch.device("meta"), _Undrawn():
            found = make()
    except MixwellError:
        raise
    except Exception:  # what asks for numbers fails on tensors without any, each operation in its own way
        return None
    return found


class _Undrawn(TorchFunctionMode):
    """Numbers that are drawn need no generator where they have none."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None,
                           ) -> Any:
        given = dict(kwargs or {})
        if function in _DRAWS and given.get("device") is None:
            given.pop("generator", None)
        return function(*args, **given)


_DRAWS = {torch.rand, torch.randn, torch.randint, torch.randperm}
