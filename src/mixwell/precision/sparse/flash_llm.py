"""Flash-LLM's format: tiles as lists of values with their places, expanded to dense ones before they are multiplied.

**Equation:** a weight in tiles of 128 x 64, row by row of tiles. A nonzero is 32 bits: its float16 below, above it
    64 r + (c xor 8 (r mod 8)), its place in the tile. Each tile's list is filled up to a multiple of 4 by zeros at
    places that are zero anyway; offsets count fours, the last one twice. y = sum over tiles of x_tile dense(tile)^T.
**Shapes:** W [M, K], M a multiple of 128, K of 64; x [.., K] -> y [.., M] float32.
**Reference:** Xia et al. 2023 (2309.10285), sections 4.2 and 4.3, and the authors' code.
**Differs:** no kernel of its own: the format, its bytes, and a product that reads it tile by tile on any device. Sums
    of `split_k` spans of K are added at last, as theirs.
**Fails when:** half of the weights or more are there: then it is larger than float16. A bitmask with values is
    smaller up to 15/16 zeros. Products cost what dense ones do.
**Cost:** 4 nnz + 4 (tiles + 2) bytes against 2 M K; M K multiplications a row of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_least

ROWS, COLUMNS = 128, 64  # of a tile
FOUR = 4  # entries are read so many at a time
ENTRY = 4  # bytes
HALF = 2  # bytes of a float16
LOW, SIXTEEN = 0xFFFF, 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the format's product."""

    split_k: int = 1  # spans of K whose products are added at last, at least 1

    def __post_init__(self) -> None:
        check_least(self, split_k=1)


def places(device: torch.device | None = None) -> Tensor:
    """The place of each number of a tile, int64 [128, 64]."""
    row = torch.arange(ROWS, device=device)
    column = torch.arange(COLUMNS, device=device)
    swap = 8 * (row % 8)
    turned = column ^ swap.unsqueeze(1)
    start = COLUMNS * row
    return start.unsqueeze(1) + turned


class Tiled(NamedTuple):
    """A weight in the format."""

    entries: Tensor  # int32, the bits of each
    offsets: Tensor  # int32 [tiles + 2], in fours
    shape: tuple[int, int]
    split_k: int = 1

    @property
    def size_bytes(self) -> int:
        """What a product reads of it."""
        return self.entries.nbytes + self.offsets.nbytes

    def tile(self, number: int) -> Tensor:
        """A tile as it is expanded, float16 [128, 64]."""
        first, last = (FOUR * self.offsets[number : number + 2]).tolist()
        bits = self.entries[first:last]
        halves = bits.view(torch.int16).view(-1, 2)  # low, high: bytes stand lowest first
        flat = torch.zeros(ROWS * COLUMNS, dtype=torch.float16, device=bits.device)
        where = (bits >> SIXTEEN).long()
        flat[where] = halves[:, 0].view(torch.float16)
        return flat[places(bits.device)]

    def dense(self) -> Tensor:
        """The weight, float16 [M, K]."""
        tiles = [self.tile(number) for number in range(self.tiles)]
        grid = torch.stack(tiles).unflatten(0, (-1, self.across))
        side_by_side = grid.transpose(1, 2)
        return side_by_side.reshape(self.shape)

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.offsets) - 2

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return self.shape[1] // COLUMNS

    def product(self, x: Tensor) -> Tensor:
        """x [.., K] times the weight's transpose, float32 [.., M]; one tile is dense at a time."""
        rows = self.shape[0]
        spans = x.new_zeros(self.split_k, *x.shape[:-1], rows, dtype=torch.float32)
        seen = x.float().split(COLUMNS, -1)
        for number in range(self.tiles):
            strip, place = divmod(number, self.across)
            span = place * self.split_k // self.across
            strips = spans[span].split(ROWS, -1)
            tile = self.tile(number).float()
            own = strips[strip]
            own += seen[place] @ tile.T
        return spans.sum(0)


def entries_of(tile: Tensor) -> Tensor:
    """The list of one tile float16 [128, 64], filled up to fours; int32."""
    flat = tile.flatten()
    where = places(tile.device).flatten()
    there = flat.nonzero().flatten()
    empty = (flat == 0).nonzero().flatten()
    short = -len(there) % FOUR
    filling = empty[:short]
    listed = torch.cat([there, filling])
    below = flat[listed].view(torch.int16)
    above = where[listed] << SIXTEEN  # a place is below 2^13, so that no sign is touched
    bits = above | (below.long() & LOW)
    return bits.to(torch.int32)


def size_bytes(nonzeros_padded: int, shape: tuple[int, int]) -> int:
    """Bytes of a weight of this shape with so many entries."""
    rows, columns = shape
    tiles = (rows // ROWS) * (columns // COLUMNS)
    return ENTRY * nonzeros_padded + 4 * (tiles + 2)


def beside(weight: Tensor) -> dict[str, int]:
    """Bytes of a weight [M, K] in float16, dense, as a bitmask with values, and as rows with int32 columns (CSR)."""
    count = weight.numel()
    rows = len(weight)
    there = int(weight.count_nonzero())
    mask = -(-count // 8)
    bitmask = HALF * there + mask
    csr = (HALF + ENTRY) * there + ENTRY * (rows + 1)
    return {"dense": HALF * count, "bitmask": bitmask, "csr": csr}


@method(title="Flash-LLM's tiles: loaded sparse, computed dense",
        paper=("Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference with "
               "Unstructured Sparsity"),
        year=2023, tags={"format"})
def flash_llm(weight: Tensor, config: Config, generator: torch.Generator | None = None) -> Tiled:
    """A weight [M, K] in the format, its numbers rounded to float16; numbers that round to 0 go. Nothing is drawn.

    Raises `ValueError` for a shape that no tiles fill, and for numbers that float16 does not hold.
    """
    if weight.ndim != 2 or not fits(weight):
        raise ValueError(f"the weight is {list(weight.shape)}; expected [M, K] of whole tiles of {ROWS} x {COLUMNS}")
    half = weight.to(torch.float16)
    if not bool(half.isfinite().all()):
        raise ValueError("the weight holds numbers beyond float16's 65504; expected smaller ones")
    rows, columns = half.shape
    across = columns // COLUMNS
    if config.split_k > across:
        raise ValueError(f"split_k is {config.split_k} of {across} tiles across; expected so many at most")
    grid = half.unflatten(1, (-1, COLUMNS)).unflatten(0, (-1, ROWS))
    tiles = grid.transpose(1, 2).flatten(0, 1)
    lists = [entries_of(tile) for tile in tiles]
    fours = [len(one) // FOUR for one in lists]
    offsets = torch.tensor([0, *fours, 0]).cumsum(0)
    return Tiled(torch.cat(lists), offsets.to(torch.int32), (rows, columns), config.split_k)


def fits(weight: Tensor) -> bool:
    """Whether whole tiles fill the matrices of a weight."""
    rows, columns = weight.shape[-2:]
    return rows % ROWS == 0 and columns % COLUMNS == 0


def sizes(checkpoint: Checkpoint) -> Mapping[str, dict[str, int]]:
    """Bytes of every matrix and expert of a model that tiles fill, in this format ("tiled") and in others."""
    found = {}
    for name, tensor in checkpoint.tensors.items():
        matrix = tensor.ndim in (2, 3) and tensor.is_floating_point()
        if not matrix or not fits(tensor):
            continue
        stack = tensor.ndim == 3
        for number, own in enumerate(tensor if stack else [tensor]):
            label = f"{name}.{number}" if stack else name
            stored = flash_llm(own, Config())
            found[label] = {"tiled": stored.size_bytes, **beside(own)}
    return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two tiles by two, of whose numbers four fifths are zero."""
    weight = torch.randn(256, 128, generator=generator)
    there = torch.rand(256, 128, generator=generator) < 0.2
    return {"weight": weight * there, "config": Config(), "generator": generator}
