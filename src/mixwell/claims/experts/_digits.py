"""Handwritten digits for claims: whole images, or rows of sixteen patches read by small networks without causality.

Legend: N images, S patches, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._methods import build, with_aux
from mixwell.claims.starts import level_inside
from mixwell.core.rng import generator
from mixwell.core.routing import Context

TRAINING = 1200  # images; the other 597 are for testing
PATCHES, PATCH, WIDTH = 16, 4, 32
SIZE = 0.1  # root mean square of what a fresh mixer adds


def images(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(training images [N, 8, 8] in 0 to 1, their digits, test images, their digits), split anew for each seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=generator(seed, "split"))
    grey = torch.from_numpy(found.images).float()
    label = torch.from_numpy(found.target).long()
    ink, digit = grey[order] / 16, label[order]
    x, x_test = ink.tensor_split([TRAINING])
    y, y_test = digit.tensor_split([TRAINING])
    return x, y, x_test, y_test


def patches(x_NHW: Tensor) -> Tensor:
    """[N, 8, 8] -> [N, 16, 4]: patches of two by two."""
    blocks = x_NHW.unfold(1, 2, 2).unfold(2, 2, 2)
    return blocks.flatten(1, 2).flatten(2)


class Reader(nn.Module):
    """Patches with learned positions, then blocks x + mixer(norm(x)), their mean, and a linear map to ten digits.

    Before each mixer stands full attention of one head, unless `attention` is False.
    """

    def __init__(self, mixers: list[Any], draws: torch.Generator, attention: bool = True) -> None:
        super().__init__()

        def start(*shape: int) -> nn.Parameter:
            drawn = torch.randn(shape, generator=draws)
            return nn.Parameter(drawn * shape[-1] ** -0.5)

        self.embed = start(WIDTH, PATCH)
        self.positions = start(PATCHES, WIDTH)
        self.head = start(10, WIDTH)
        self.mixers = nn.ModuleList(mixers)
        self.qkv = None
        if attention:
            self.qkv = nn.ParameterList(start(3 * WIDTH, WIDTH) for _ in mixers)

    def forward(self, x_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """(scores of the digits [N, 10], sum of the auxiliary losses)."""
        x = patches(x_NHW) @ self.embed.T + self.positions
        aux = x.new_zeros(())
        context = Context(batch_shape=(len(x), PATCHES))
        for i, mixer in enumerate(self.mixers):
            if self.qkv is not None:
                x = x + attended(norm(x), self.qkv[i])
            rows = norm(x).flatten(0, 1)
            mixed = mixer(rows, context)
            x = x + mixed.y_TD.view_as(x)
            aux = with_aux(aux, mixed.aux)
        pooled = norm(x).mean(1)
        return pooled @ self.head.T, aux


def attended(x_NSD: Tensor, qkv: Tensor) -> Tensor:
    """Full attention of one head."""
    q, k, v = (x_NSD @ qkv.T).chunk(3, -1)
    return nn.functional.scaled_dot_product_attention(q, k, v)


def norm(x: Tensor) -> Tensor:
    """Rows at root mean square 1."""
    return nn.functional.rms_norm(x, x.shape[-1:])


def fitted(model: Any, x: Tensor, y: Tensor, seed: int, *, steps: int = 400, lr: float = 3e-3) -> Any:
    """Train `model(x) -> (scores, auxiliary loss)` by cross-entropy on batches of 128; handed back in evaluation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    draws = generator(seed, "batches")
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=draws)
        scores, aux = model(x[rows])
        optimizer.zero_grad()
        (nn.functional.cross_entropy(scores, y[rows]) + aux).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    """Share of the images whose digit is right."""
    scores, _ = model(x)
    return share_right(scores, y)


def share_right(scores_NC: Tensor, y_N: Tensor) -> float:
    """Share of the rows whose class scores highest."""
    right = scores_NC.argmax(1) == y_N
    return float(right.float().mean())


def read(seed: int, mixers: list[Any], draws: torch.Generator, *, steps: int = 400, attention: bool = True,
         lr: float = 3e-3) -> float:
    """Accuracy on test images of a reader with these mixers, which start at one size, after training."""
    x, y, x_test, y_test = images(seed)
    model = Reader(mixers, draws, attention).eval()
    first = x[:128]
    level_inside(mixers, partial(model, first), SIZE)
    fitted(model, x, y, seed, steps=steps, lr=lr)
    return accuracy(model, x_test, y_test)


def two_mixers(name: str, draws: torch.Generator, **options: Any) -> list[Any]:
    """Two layers of WIDTH by name."""
    return [build(name, WIDTH, generator=draws, **options) for _ in range(2)]
