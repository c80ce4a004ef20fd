"""Batches drawn from a mixture of domains: planned shares kept to within a window, every window once an epoch.

Legend: B windows a batch, S tokens a window. A window of S tokens reads S + 1, the targets being one place further;
windows of a stream overlap by that one token and no more.

The domain of the next window is the one furthest behind its planned share, and the windows of a domain follow a
seeded permutation of each epoch; one without a target that counts is none. How many windows each domain gave is
therefore the whole state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.rng import generator
from mixwell.lm.data import TokenData
from mixwell.lm.network import IGNORED
from mixwell.lm.training.documents import NOBODYS, windows_of


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids, what follows each, and the domain of each row."""

    tokens_BT: Tensor  # int64
    targets_BT: Tensor  # int64; -100 where the loss does not count
    domains_B: Tensor  # int64; place in `TokenData.domains`
    documents_BT: Tensor | None = None  # int64; the document of each token, where documents are kept apart


class Sampler:
    """Draws batches from the train streams of `data`.

    weights: share of the windows by domain (any positive scale; 0 leaves a domain out); None takes each domain in
    proportion to its tokens. With `world_size` N, rank r reads rows r, r + N, ... of the batch that one worker would
    read, and every rank keeps the same state. apart: windows of whole documents, see `documents.windows_of`.
    """

    def __init__(self, data: TokenData, weights: Mapping[str, float] | None, batch_size: int, seq_len: int,
                 seed: int, *, rank: int = 0, world_size: int = 1, apart: bool = False) -> None:
        if batch_size < 1 or seq_len < 1:
            raise MixwellError(f"batch_size {batch_size} and seq_len {seq_len}: expected at least 1.")
        if not 0 <= rank < world_size or batch_size % world_size:
            raise MixwellError(f"rank {rank} of {world_size} with batch_size {batch_size}: expected a rank below the "
                               "number of workers, and a batch_size that they divide.")
        self.data, self.batch_size, self.seq_len, self.seed = data, batch_size, seq_len, seed
        self.rank, self.world_size, self.apart = rank, world_size, apart
        self.weights = _shares(data, weights)
        read = [domain for domain, share in self.weights.items() if share]
        self._spans = {domain: _spans(data, domain, seq_len) for domain in read} if apart else {}
        self._ends = {domain: data.ends(domain, "train") for domain in self._spans}
        self._places = {domain: self._where(domain) for domain in read}
        self._windows = {domain: len(places) for domain, places in self._places.items()}
        self._streams = {domain: data.tokens(domain, "train") for domain in read}
        self._drawn = dict.fromkeys(read, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # of the epoch each domain is in

    def _where(self, domain: str) -> Sequence[int] | np.ndarray:
        """The windows of a domain by number."""
        if self.apart:
            return range(len(self._spans[domain]))
        return _places(self.data, domain, self.seq_len)

    def batch(self) -> Batch:
        """The next batch: this rank's rows of it."""
        if self.apart:
            return self._batch_apart()
        rows, targets, domains = [], [], []
        for row in range(self.batch_size):
            domain, start = self._next()
            if row % self.world_size != self.rank:
                continue
            end = start + self.seq_len + 1
            stream = self._streams[domain]
            rows.append(stream[start : end - 1])
            targets.append(self.data.labels(domain, "train", start + 1, end))
            domains.append(self.data.domains.index(domain))
        ids = np.stack(rows).astype(np.int64)
        labels = np.stack(targets)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(domains))

    def _batch_apart(self) -> Batch:
        """The next batch, of windows that hold whole documents and are filled up behind them."""
        rows, targets, domains, documents = [], [], [], []
        for row in range(self.batch_size):
            domain, number = self._next()
            if row % self.world_size != self.rank:
                continue
            first, last = self._spans[domain][number].tolist()
            ids = self._streams[domain][first : last - 1].astype(np.int64)
            labels = self.data.labels(domain, "train", first + 1, last)
            places = np.arange(first, last)
            owners = np.searchsorted(self._ends[domain], places, side="right")
            labels[owners[1:] != owners[:-1]] = IGNORED
            missing = (0, self.seq_len - len(ids))
            rows.append(np.pad(ids, missing))
            targets.append(np.pad(labels, missing, constant_values=IGNORED))
            documents.append(np.pad(owners[:-1], missing, constant_values=NOBODYS))
            domains.append(self.data.domains.index(domain))
        tokens_BT, targets_BT, documents_BT = (torch.from_numpy(np.stack(part)) for part in (rows, targets, documents))
        return Batch(tokens_BT, targets_BT, torch.tensor(domains), documents_BT)

    def _next(self) -> tuple[str, int]:
        """The next window: its domain, and where it starts or (apart) its number."""
        total = sum(self._drawn.values()) + 1

        def behind(domain: str) -> float:
            return self.weights[domain] * total - self._drawn[domain]

        domain = max(self._drawn, key=behind)
        epoch, place = divmod(self._drawn[domain], self._windows[domain])
        self._drawn[domain] += 1
        drawn = int(self._order(domain, epoch)[place])
        window = int(self._places[domain][drawn])
        return domain, window if self.apart else window * self.seq_len

    def _order(self, domain: str, epoch: int) -> np.ndarray:
        found = self._orders.get(domain)
        if found is not None and found[0] == epoch:
            return found[1]
        draws = generator(self.seed, "sampler", domain, epoch)
        order = torch.randperm(self._windows[domain], generator=draws).numpy()
        self._orders[domain] = epoch, order
        return order

    @property
    def epoch_tokens(self) -> int:
        """Tokens of all windows, each once."""
        return sum(self._windows.values()) * self.seq_len

    def ledger(self) -> dict[str, int]:
        """Tokens drawn so far by domain, over all ranks."""
        tokens = dict.fromkeys(self.data.domains, 0)
        for domain, drawn in self._drawn.items():
            tokens[domain] = drawn * self.seq_len
        return tokens

    def epochs(self) -> dict[str, float]:
        """How often each domain's windows have been gone through."""
        epochs = dict.fromkeys(self.data.domains, 0.0)
        for domain, drawn in self._drawn.items():
            epochs[domain] = drawn / self._windows[domain]
        return epochs

    def state_dict(self) -> dict[str, Any]:
        """Plain data, a number a domain, from which another sampler of the same settings goes on exactly."""
        return {"drawn": dict(self._drawn), "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; other data, weights, seed or window length than it was made with raise."""
        settings, drawn = state["settings"], state["drawn"]
        for name, value in self._settings().items():
            saved = settings.get(name)
            if saved != value:
                raise MixwellError(f"the sampler's state was made with {name} {saved}, and this one has {value}; "
                                   "resume with the same settings, or start afresh.")
        self._drawn = {domain: int(count) for domain, count in drawn.items()}

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seq_len": self.seq_len,
            "weights": self.weights,
            "windows": self._windows,
            **({"apart": True} if self.apart else {}),
        }


def _shares(data: TokenData, weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        weights = {domain: data.count(domain, "train") for domain in data.domains}
    for domain, weight in weights.items():
        if domain not in data.domains:
            raise MixwellError(f"weights: no domain {domain!r}.{suggest(domain, data.domains)} Known domains: "
                               f"{', '.join(data.domains)}.")
        if not 0 <= weight < float("inf"):
            raise MixwellError(f"weights.{domain}: expected a number of 0 or more, got {weight!r}.")
    total = sum(weights.values())
    if not total > 0:
        raise MixwellError("weights: all are 0; expected at least one domain with a positive weight.")
    return {domain: weights.get(domain, 0.0) / total for domain in data.domains}


def _places(data: TokenData, domain: str, seq_len: int) -> Sequence[int] | np.ndarray:
    """The windows of a domain that hold a target that counts, in order."""
    windows = range(_num_windows(data, domain, seq_len))
    mask = data.mask(domain, "train")
    if mask is None:
        return windows
    targets_WS = mask[1 : len(windows) * seq_len + 1].reshape(-1, seq_len)
    counting = targets_WS.any(1)
    if not counting.any():
        raise MixwellError(f"domain {domain!r} holds nothing to learn from: no token of it counts in the loss. Give it "
                           "conversations with answers, or set data.answers_only: false.")
    return np.flatnonzero(counting)


def _spans(data: TokenData, domain: str, seq_len: int) -> np.ndarray:
    """The windows of whole documents that hold a target that counts, [W, 2]."""
    found = windows_of(data.ends(domain, "train"), seq_len)
    mask = data.mask(domain, "train")
    if mask is not None:
        before = np.concatenate(([0], mask.cumsum(dtype=np.int64)))
        counted = before[found[:, 1]] - before[found[:, 0] + 1]
        found = found[counted > 0]
    if not len(found):
        raise MixwellError(f"domain {domain!r} holds no document with something to learn from; expected two tokens or "
                           "more, of conversations an answer.")
    return found


def _num_windows(data: TokenData, domain: str, seq_len: int) -> int:
    tokens = data.count(domain, "train")
    if tokens <= seq_len:
        raise MixwellError(f"domain {domain!r} has {tokens} tokens to train on; a window of seq_len {seq_len} reads "
                           f"{seq_len + 1}. Give it more text, set seq_len below {tokens}, or its weight to 0.")
    return (tokens - 1) // seq_len
