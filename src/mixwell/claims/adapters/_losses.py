"""What claims of adapters measure."""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.strings import Rows


@torch.no_grad()
def nats(network: Any, rows: Rows) -> float:
    """Cross-entropy of the answers, mean over letters."""
    before = rows.tokens[:, :-1]
    network.eval()
    found = network.loss(before, rows.targets)
    return float(found.nats)
