"""The next byte from the eight before it, by feed-forwards alone: text for claims whose maps are on trial.

Legend: N places of the text, W bytes read before each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.core.routing import Context

WINDOW, EMBEDDED, BYTES = 8, 16, 256
BATCH, HELD = 256, 8192
LAYERS = 2
RATES = (2e-3, 4e-3, 8e-3)  # learning rates that are tried
BITS = "bits per byte of held-out text"


@functools.cache
def text() -> Tensor:
    """The standard library's own docstrings, uint8."""
    from mixwell.run.datasets import standard_library

    documents = standard_library(400_000)["docstrings"]
    joined = "\n".join(document.text for document in documents)
    raw = np.frombuffer(joined.encode(), dtype=np.uint8)
    return torch.from_numpy(raw.copy())


class Reader(nn.Module):
    """Embedded bytes side by side, a map to the width, two blocks x + mixer(norm(x)), a map to the next byte."""

    def __init__(self, dim: int, mixer: Mapping[str, Any], draws: torch.Generator) -> None:
        super().__init__()

        def start(rows: int, columns: int, std: float) -> nn.Parameter:
            drawn = torch.randn(rows, columns, generator=draws)
            return nn.Parameter(drawn * std)

        width = WINDOW * EMBEDDED
        self.embed = start(BYTES, EMBEDDED, 0.5)
        self.into = start(dim, width, width**-0.5)
        self.head = start(BYTES, dim, dim**-0.5)
        options = dict(mixer)
        entry = registry.find(options.pop("method"), "experts.layers")
        config = from_dict(entry.module().Config, options)
        layers = [entry.load()(dim, config, draws) for _ in range(LAYERS)]
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, windows_NW: Tensor) -> Tensor:
        """Scores of the next byte [N, 256]."""
        x = self.embed[windows_NW.long()].flatten(1)
        x = x @ self.into.T
        for layer in self.layers:
            mixed = layer(_norm(x), Context())
            x = x + mixed.y_TD
        return _norm(x) @ self.head.T

    def flops(self) -> float:
        """Forward FLOPs of the blocks and the two maps for one byte."""
        blocks = sum(layer.flops_per_token() for layer in self.layers)
        maps = self.into.numel() + self.head.numel()
        return blocks + 2.0 * maps


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def learnt(seed: int, mixer: Mapping[str, Any], *, dim: int = 64, steps: int = 300, lr: float = 4e-3) -> Reader:
    """A reader trained by Adam on batches of places, the rate falling as a cosine."""
    draws = generator(seed, "reader")
    model = Reader(dim, mixer, draws)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ahead = text()
    windows = ahead.unfold(0, WINDOW + 1, 1)[:-HELD]
    for _ in range(steps):
        places = torch.randint(len(windows), (BATCH,), generator=draws)
        loss = _nats(model, windows[places])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return model.eval()


def _nats(model: Reader, windows: Tensor) -> Tensor:
    scores = model(windows[:, :WINDOW])
    return F.cross_entropy(scores, windows[:, WINDOW].long())


@torch.no_grad()
def bits(model: Reader) -> float:
    """Bits for each of the last bytes of the text."""
    windows = text().unfold(0, WINDOW + 1, 1)[-HELD:]
    nats = float(_nats(model, windows))
    return nats / 0.6931471805599453
