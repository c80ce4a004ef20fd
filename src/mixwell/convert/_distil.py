"""Bringing a student's tensors closer to what its teacher says of calibration text.

Legend: B rows, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.convert.calibration import Calibration
from mixwell.core.checkpoint import Checkpoint

Loss = Callable[[Tensor], Tensor]  # of a batch of token ids


def descend(parameters: Sequence[Tensor], loss: Loss, batches: Sequence[Tensor], passes: int, lr: float) -> None:
    """Adam on `parameters` in place, once through the batches for each pass, the rate falling to 0 in a line."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    steps = passes * len(batches)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        value = loss(batches[step % len(batches)])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def next_nats(logits_BSV: Tensor, tokens_BS: Tensor) -> Tensor:
    """Mean cross-entropy of each next token."""
    before = logits_BSV[:, :-1].flatten(0, 1)
    targets = tokens_BS[:, 1:].flatten()
    return F.cross_entropy(before, targets)


def soft_nats(logits_BSV: Tensor, teacher_BSV: Tensor) -> Tensor:
    """Mean cross-entropy of the student's next-token shares under the teacher's, less the teacher's own entropy."""
    own = logits_BSV.log_softmax(-1).flatten(0, 1)
    theirs = teacher_BSV.log_softmax(-1).flatten(0, 1)
    return F.kl_div(own, theirs, log_target=True, reduction="batchmean")


def distil(teacher: Checkpoint, student: Checkpoint, names: Sequence[str], calibration: Calibration, *, passes: int,
           lr: float, soft: float) -> Checkpoint:
    """The student with the tensors named trained on soft KL(teacher || student) + (1 - soft) cross-entropy."""
    moving = {name: student.tensors[name].float().clone().requires_grad_() for name in names}

    def loss(tokens_BS: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_BSV = calibration.logits(teacher, tokens_BS, {})
        logits_BSV = calibration.logits(student, tokens_BS, moving)
        own = next_nats(logits_BSV, tokens_BS)
        theirs = soft_nats(logits_BSV, teacher_BSV)
        return soft * theirs + (1 - soft) * own

    parameters = list(moving.values())
    descend(parameters, loss, calibration.batches, passes, lr)
    return with_tensors(student, moving)


def with_tensors(checkpoint: Checkpoint, moved: Mapping[str, Tensor]) -> Checkpoint:
    """A copy with these tensors in their places, in the types of those before."""
    tensors = dict(checkpoint.tensors)
    for name, value in moved.items():
        before = tensors[name]
        tensors[name] = value.detach().to(before.dtype)
    return replace(checkpoint, tensors=tensors)
