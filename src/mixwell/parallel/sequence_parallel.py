"""Causal attention over a sequence that lies with several workers: heads change hands, keys and values go round.

**Equation:** the P = U R workers stand in R rows of U neighbours. Queries, keys and values change hands inside a row:
    from all heads of s / P places to H / U heads of s / R places. Keys and values then go round the R rows of a column,
    and what each round gives is joined by its weight:  o = (e^l o + e^l' o') / (e^l + e^l'),  l = log sum e^(q k).
    Places are cut in 2 R chunks; row r holds the chunks r and 2 R - 1 - r. Keys of an earlier row: all queries see the
    first of its two chunks. Of a later row: the second chunk of queries sees both. So all rows have the same work.
**Shapes:** on each worker q [n, H, d], k and v [n, G, d], n = s / P places, G <= H heads of keys; out [n, H, d].
**Reference:** Fang and Zhao 2024 (2405.07719), sections 3 and 4, and the released code (zigzag ring, merge by lse).
**Differs:** blocks are plain products in the type that comes, joined in it, where the code calls flash attention and
    joins in float32. The backward pass goes round by autograd: gradients of keys and values travel with every pass.
**Fails when:** U does not divide the heads of keys; s is no multiple of 2 P, for which pad the sequence.
**Cost:** a worker sends (2 H + 2 G) n d (U - 1) / U elements along its row, 2 G / U (s / R) d (R - 1) round the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.parallel.moves import exchange
from mixwell.parallel.wire import ThreadWire, Wire, in_threads


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of attention over workers."""

    heads: int = 2  # U: workers of a row, among which heads change hands
    ring: int = 2  # R: rows, among which keys and values go round

    def __post_init__(self) -> None:
        check_least(self, heads=1, ring=1)


class Mesh(NamedTuple):
    """A worker's wires."""

    heads: Wire  # along its row
    ring: Wire  # along its column


def places(length: int, config: Config) -> list[Tensor]:
    """The places of the sequence that each worker holds, in its order: for positions, labels and inputs alike.

    Raises `ValueError` for a length that is no multiple of 2 U R.
    """
    ring = config.ring
    twice = 2 * config.heads * ring
    if length % twice:
        raise ValueError(f"the sequence has {length} places; expected a multiple of {twice}, twice the workers")
    chunks = torch.arange(length).chunk(2 * ring)
    held: list[Tensor] = []
    for row in range(ring):
        both = torch.cat([chunks[row], chunks[-1 - row]])
        held += both.chunk(config.heads)
    return held


def mesh_of(wire: ThreadWire, config: Config) -> Mesh:
    """The wires of a worker among threads."""
    heads = config.heads
    row, column = divmod(wire.rank, heads)
    first = row * heads
    along = range(first, first + heads)
    down = range(column, wire.size, heads)
    return Mesh(wire.sub(along), wire.sub(down))


def to_heads(x_nHd: Tensor, wire: Wire) -> Tensor:
    """All heads of own places [n, H, d] -> own heads of the row's places [U n, H / U, d]."""
    n = x_nHd.shape[0]
    counts = [n] * wire.size
    parts = torch.cat(x_nHd.chunk(wire.size, dim=1))
    return exchange(parts, wire, counts, counts)


def to_places(x_Nhd: Tensor, wire: Wire) -> Tensor:
    """The way back: [U n, H / U, d] -> [n, H, d]."""
    n = x_Nhd.shape[0] // wire.size
    counts = [n] * wire.size
    came = exchange(x_Nhd, wire, counts, counts)
    return torch.cat(came.split(n), dim=1)


def attend(q_Nhd: Tensor, k_Mgd: Tensor, v_Mgd: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(result [N, h, d], log of the sum of weights [N, h, 1]); each head of keys serves h / g heads of queries."""
    repeats = q_Nhd.shape[1] // k_Mgd.shape[1]
    k_Mhd = k_Mgd.repeat_interleave(repeats, dim=1)
    v_Mhd = v_Mgd.repeat_interleave(repeats, dim=1)
    scale = q_Nhd.shape[-1] ** -0.5
    scores_hNM = scale * torch.einsum("nhd,mhd->hnm", q_Nhd, k_Mhd)
    if causal:
        all_NM = torch.ones_like(scores_hNM[0], dtype=torch.bool)
        scores_hNM = scores_hNM.masked_fill(all_NM.triu(1), -torch.inf)
    log_hN1 = scores_hNM.logsumexp(-1, keepdim=True)
    weights_hNM = (scores_hNM - log_hN1).exp()
    out_Nhd = torch.einsum("hnm,mhd->nhd", weights_hNM, v_Mhd)
    return out_Nhd, log_hN1.transpose(0, 1)


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two results over different keys as one over both."""
    (out, log), (more, more_log) = one, other
    both = torch.logaddexp(log, more_log)
    share, rest = (log - both).exp(), (more_log - both).exp()
    return out * share + more * rest, both


def round_the_ring(q_Nhd: Tensor, k_Ngd: Tensor, v_Ngd: Tensor, wire: Wire) -> Tensor:
    """Causal attention of own queries to the keys of all rows [N, h, d]."""
    half = q_Nhd.shape[0] // 2
    both_Ngx = torch.cat([k_Ngd, v_Ngd], dim=-1)
    found = attend(q_Nhd, k_Ngd, v_Ngd, causal=True)
    for step in range(1, wire.size):
        both_Ngx = _passed_on(both_Ngx, wire)
        k_Ngd, v_Ngd = both_Ngx.chunk(2, dim=-1)
        if step <= wire.rank:  # they come from an earlier row
            found = joined(found, attend(q_Nhd, k_Ngd[:half], v_Ngd[:half], causal=False))
        else:
            out, log = found
            second = attend(q_Nhd[half:], k_Ngd, v_Ngd, causal=False)
            more, more_log = joined((out[half:], log[half:]), second)
            found = torch.cat([out[:half], more]), torch.cat([log[:half], more_log])
    return found[0]


def _passed_on(rows: Tensor, wire: Wire) -> Tensor:
    """The rows of the worker before this one in the ring, its own going to the next."""
    size, rank = wire.size, wire.rank
    sent = [0] * size
    received = [0] * size
    following = (rank + 1) % size
    sent[following] = received[rank - 1] = len(rows)
    return exchange(rows, wire, sent, received)


def attention(q_nHd: Tensor, k_nGd: Tensor, v_nGd: Tensor, mesh: Mesh) -> Tensor:
    """Causal attention of a worker's places to all places before them [n, H, d]; see the module's card.

    Raises `ValueError` where the workers of a row do not divide the heads of keys.
    """
    groups, row = k_nGd.shape[1], mesh.heads.size
    if groups % row:
        raise ValueError(f"{groups} heads of keys over {row} workers of a row; expected a number that divides them")
    q_Nhd, k_Ngd, v_Ngd = (to_heads(part, mesh.heads) for part in (q_nHd, k_nGd, v_nGd))
    out_Nhd = round_the_ring(q_Nhd, k_Ngd, v_Ngd, mesh.ring)
    return to_places(out_Nhd, mesh.heads)


@method(
    title="Sequences over workers: heads and a ring",
    paper="A Unified Sequence Parallelism Approach for Long Context Generative AI",
    year=2024,
)
def sequence_parallel(q_SHd: Tensor, k_SGd: Tensor, v_SGd: Tensor, config: Config) -> Tensor:
    """Causal attention of a whole sequence, with the workers as threads: [S, H, d]."""
    held = places(len(q_SHd), config)

    def work(wire: ThreadWire) -> Tensor:
        mine = held[wire.rank]
        mesh = mesh_of(wire, config)
        return attention(q_SHd[mine], k_SGd[mine], v_SGd[mine], mesh)

    found = in_threads(len(held), work)
    order = torch.cat(held)
    return torch.cat(found)[order.argsort()]


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixteen places, four heads of queries and two of keys, over four workers."""
    q_SHd = torch.randn(16, 4, 3, generator=generator)
    k_SGd = torch.randn(16, 2, 3, generator=generator)
    v_SGd = torch.randn(16, 2, 3, generator=generator)
    return {"q_SHd": q_SHd, "k_SGd": k_SGd, "v_SGd": v_SGd, "config": Config()}
