"""PEGO: changes that are kept orthogonal to the frozen weights and to each other go further than free ones.

Paper: Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for Domain
Generalization.
Tried: a net that reads digits, adapted to digits turned by 0, 15 and 30 degrees by four low-rank changes a layer, with
the penalty and without, and judged on digits turned by 60; rate and coefficient are chosen on the angles of the
training. Against it: an error at 60 degrees that is no smaller.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mixwell.adapters.pego import penalty
from mixwell.claims.adapters._turned import Rows, attached, base, images, trained, wrong
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import RATES, finer

ANGLES, FAR = (0, 15, 30), 60
STEPS = 60


def leant(x: Tensor, angle: float) -> Tensor:
    """Images [N, 64] turned by an angle in degrees."""
    from scipy.ndimage import rotate

    upright = x.view(-1, 8, 8)
    pixels = upright.numpy()
    turned = rotate(pixels, angle, axes=(1, 2), reshape=False, order=1)
    leaning = torch.from_numpy(turned)
    return leaning.flatten(1)


@functools.cache
def domains(seed: int) -> tuple[Rows, Rows, Rows]:
    """Digits at the angles of the training: to train on and to choose by; and at the far one, to judge by."""
    upright, _, _ = images(seed)
    inks = upright.x.split(300)
    names = upright.y.split(300)
    first, second, third = map(Rows, inks, names)
    turned = leant(third.x, FAR)
    far = Rows(turned, third.y)
    near = _all_angles(first)
    chosen_by = _all_angles(second)
    return near, chosen_by, far


def _all_angles(rows: Rows) -> Rows:
    turned = [leant(rows.x, angle) for angle in ANGLES]
    return Rows(torch.cat(turned), rows.y.repeat(len(ANGLES)))


def measure(bench: Bench, seed: int, *, lr: float, coefficient: float = 0.0) -> dict[str, float]:
    """Errors at the far angle and at those of the training."""
    net = base(seed)
    there = attached(net, "pego", seed, penalty=coefficient, mean=True)
    rows, chosen_by, far = domains(seed)
    trained(net, rows, STEPS, lr, lambda: penalty(there) if coefficient else 0.0)
    away = wrong(net, far)
    near = wrong(net, chosen_by)
    return {"far": away, "near": near}


CLAIM = Claim(
    "A penalty that keeps low-rank changes orthogonal makes them generalise to another angle.",
    "share of digits turned by 60 degrees that are read wrongly", quantity="far", tuned_by="near",
    sides={"method": Side(measure, {}, {"lr": RATES, "coefficient": (0.1, 1.0, 10.0)}),
           "baseline": Side(measure, {}, {"lr": finer(RATES, 9)})})
