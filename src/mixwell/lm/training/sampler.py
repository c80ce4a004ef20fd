"""Batches drawn from a mixture of domains: planned shares kept to within a window, every window once an epoch.

Legend: B windows a batch, S tokens a window. A window of S tokens reads S + 1, the targets being one place further;
windows of a stream overlap by that one token and no more.

The domain of the next window is the one furthest behind its planned share, and the windows of a domain follow a
seeded permutation of each epoch. How many windows each domain gave is therefore the whole state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.rng import generator
from mixwell.lm.data import TokenData


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids, what follows each, and the domain of each row."""

    tokens_BT: Tensor  # int64
    targets_BT: Tensor  # int64
    domains_B: Tensor  # int64; place in `TokenData.domains`


class Sampler:
    """Draws batches from the train streams of `data`.

    weights: share of the windows by domain (any positive scale; 0 leaves a domain out); None takes each domain in
    proportion to its tokens. With `world_size` N, rank r reads rows r, r + N, ... of the batch that one worker would
    read, and every rank keeps the same state.
    """

    def __init__(self, data: TokenData, weights: Mapping[str, float] | None, batch_size: int, seq_len: int,
                 seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or seq_len < 1:
            raise MixwellError(f"batch_size {batch_size} and seq_len {seq_len}: expected at least 1.")
        if not 0 <= rank < world_size or batch_size % world_size:
            raise MixwellError(f"rank {rank} of {world_size} with batch_size {batch_size}: expected a rank below the "
                               "number of workers, and a batch_size that they divide.")
        self.data, self.batch_size, self.seq_len, self.seed = data, batch_size, seq_len, seed
        self.rank, self.world_size = rank, world_size
        self.weights = _shares(data, weights)
        self._windows = {d: _num_windows(data, d, seq_len) for d, share in self.weights.items() if share}
        self._drawn = dict.fromkeys(self._windows, 0)
        self._streams = {d: data.tokens(d, "train") for d in self._windows}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # of the epoch each domain is in

    def batch(self) -> Batch:
        """The next batch: this rank's rows of it."""
        rows, domains = [], []
        for row in range(self.batch_size):
            domain, start = self._next()
            if row % self.world_size == self.rank:
                rows.append(self._streams[domain][start : start + self.seq_len + 1])
                domains.append(self.data.domains.index(domain))
        window_BT = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous(), torch.tensor(domains))

    def _next(self) -> tuple[str, int]:
        """The next window: its domain and where it starts."""
        total = sum(self._drawn.values()) + 1
        domain = max(self._drawn, key=lambda d: self.weights[d] * total - self._drawn[d])
        epoch, place = divmod(self._drawn[domain], self._windows[domain])
        self._drawn[domain] += 1
        return domain, int(self._order(domain, epoch)[place]) * self.seq_len

    def _order(self, domain: str, epoch: int) -> np.ndarray:
        if self._orders.get(domain, (-1,))[0] != epoch:
            draws = generator(self.seed, "sampler", domain, epoch)
            self._orders[domain] = epoch, torch.randperm(self._windows[domain], generator=draws).numpy()
        return self._orders[domain][1]

    def ledger(self) -> dict[str, int]:
        """Tokens drawn so far by domain, over all ranks."""
        return {d: self._drawn.get(d, 0) * self.seq_len for d in self.data.domains}

    def epochs(self) -> dict[str, float]:
        """How often each domain's windows have been gone through."""
        return {d: self._drawn[d] / self._windows[d] if d in self._drawn else 0.0 for d in self.data.domains}

    def state_dict(self) -> dict[str, Any]:
        """Plain data, a number a domain, from which another sampler of the same settings goes on exactly."""
        return {"drawn": dict(self._drawn), "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; other data, weights, seed or window length than it was made with raise."""
        for name, value in self._settings().items():
            if state["settings"].get(name) != value:
                raise MixwellError(f"the sampler's state was made with {name} {state['settings'].get(name)}, and this "
                                   f"one has {value}; resume with the same settings, or start afresh.")
        self._drawn = {d: int(n) for d, n in state["drawn"].items()}

    def _settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "seq_len": self.seq_len, "weights": self.weights, "windows": self._windows}


def _shares(data: TokenData, weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        weights = {d: data.count(d, "train") for d in data.domains}
    for domain, weight in weights.items():
        if domain not in data.domains:
            raise MixwellError(f"weights: no domain {domain!r}.{suggest(domain, data.domains)} Known domains: "
                               f"{', '.join(data.domains)}.")
        if not 0 <= weight < float("inf"):
            raise MixwellError(f"weights.{domain}: expected a number of 0 or more, got {weight!r}.")
    total = sum(weights.values())
    if not total > 0:
        raise MixwellError("weights: all are 0; expected at least one domain with a positive weight.")
    return {d: weights.get(d, 0.0) / total for d in data.domains}


def _num_windows(data: TokenData, domain: str, seq_len: int) -> int:
    tokens = data.count(domain, "train")
    if tokens <= seq_len:
        raise MixwellError(f"domain {domain!r} has {tokens} tokens to train on; a window of seq_len {seq_len} reads "
                           f"{seq_len + 1}. Give it more text, set seq_len below {tokens}, or its weight to 0.")
    return (tokens - 1) // seq_len
