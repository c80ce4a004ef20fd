"""Windows of whole documents, and their rows taken apart, so that no token attends to another document.

Legend: B windows, T tokens of a window, W windows of a stream, S tokens that a window may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.lm.network import IGNORED

NOBODYS = -1  # document of what fills a window up
WASTE = 0.25  # padding that is put up with, as a share of the tokens: documents of like lengths are read together


def windows_of(ends: np.ndarray, seq_len: int) -> np.ndarray:
    """Where windows begin and end, int64 [W, 2]: documents one behind the other as long as they fit.

    ends: the place behind each document. A window of S = seq_len reads S + 1 tokens at most, the last as a target. A
    longer document is read in pieces of that size, which overlap by one token; each is a window of its own.
    """
    most = seq_len + 1
    found: list[list[int]] = []
    start = 0
    for end in ends.tolist():
        if end - start > most:
            found += _pieces_of(start, end, seq_len)
        elif found and found[-1][1] == start and end - found[-1][0] <= most:
            found[-1][1] = end
        else:
            found.append([start, end])
        start = end
    table = np.array(found, np.int64).reshape(-1, 2)
    return table[table[:, 1] - table[:, 0] > 1]


def _pieces_of(start: int, end: int, seq_len: int) -> list[list[int]]:
    firsts = range(start, end - 1, seq_len)
    return [[first, min(first + seq_len + 1, end)] for first in firsts]


def count_cut(ends: np.ndarray, seq_len: int) -> int:
    """Documents that are read in pieces."""
    lengths = np.diff(ends, prepend=0)
    longer = lengths > seq_len + 1
    return int(longer.sum())


class Piece(NamedTuple):
    """The tokens of one document in one window."""

    row: int
    start: int
    stop: int


def taken_apart(tokens_BT: Tensor, targets_BT: Tensor, domains_B: Tensor,
                documents_BT: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(tokens, targets, domains, mask) of the documents in a batch, a row each, those of like lengths together.

    documents_BT: the document of each token, `NOBODYS` where there is none. What is padded is False in the mask and no
    target. A document without a target that counts is left out.
    """
    counted_BT = (targets_BT != IGNORED).cpu().numpy()
    pieces = _pieces(documents_BT.cpu().numpy())
    kept = [piece for piece in pieces if counted_BT[piece.row, piece.start : piece.stop].any()]
    for bucket in _buckets(kept):
        longest = bucket[0].stop - bucket[0].start
        rows = torch.tensor([piece.row for piece in bucket], device=domains_B.device)
        tokens = [_filled(tokens_BT, piece, longest, 0) for piece in bucket]
        targets = [_filled(targets_BT, piece, longest, IGNORED) for piece in bucket]
        lengths_B = torch.tensor([piece.stop - piece.start for piece in bucket], device=domains_B.device)
        places_T = torch.arange(longest, device=domains_B.device)
        yield torch.stack(tokens), torch.stack(targets), domains_B[rows], places_T < lengths_B[:, None]


def _pieces(documents_BT: np.ndarray) -> list[Piece]:
    found = []
    for row, documents_T in enumerate(documents_BT):
        changes = np.flatnonzero(np.diff(documents_T)) + 1
        edges = [0, *changes.tolist(), len(documents_T)]
        for start, stop in pairwise(edges):
            if documents_T[start] != NOBODYS:
                found.append(Piece(row, start, stop))
    return found


def _buckets(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces, longest first, in groups that padding makes no more than `WASTE` larger."""
    found: list[list[Piece]] = []
    inside = 0  # tokens of the last group
    for piece in sorted(pieces, key=lambda piece: piece.start - piece.stop):
        size = piece.stop - piece.start
        if found:
            longest = found[-1][0].stop - found[-1][0].start
            padded = longest * (len(found[-1]) + 1)
        if found and padded <= (1 + WASTE) * (inside + size):
            found[-1].append(piece)
            inside += size
        else:
            found.append([piece])
            inside = size
    return found


def _filled(values_BT: Tensor, piece: Piece, length: int, filler: int) -> Tensor:
    own = values_BT[piece.row, piece.start : piece.stop]
    missing = length - len(own)
    return torch.cat((own, own.new_full((missing,), filler)))
