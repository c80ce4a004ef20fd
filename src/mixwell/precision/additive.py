"""AQLM: short pieces of a row are sums of words, one from each of a few learned codebooks.

**Equation:** w_oj = s_o sum_m C_m[b_ojm] for each piece j of d numbers; minimise tr(D H D^T), D = W' - W, H = 2 / n sum
    x x^T over calibration text. Start: k-means of what the books before leave. Then in turns: C by conjugate gradients
    and s in closed form; b by beam search, piece by piece in random order, each time the words that leave the least
    error of the whole row given all others.
**Shapes:** W [O, I], H [I, I], C_m [2^B, d], b [O, I / d, M], s [O]; each expert of a stack has its own books.
**Reference:** Egiazarian et al. 2024 (2401.06118), section 3 and algorithm 1; the authors' code for start and order.
**Differs:** C minimises the quadratic by conjugate gradients, where the authors take Adam, so that no turn makes the
    error grow. Books are float16, scales bfloat16. Blocks are not tuned as a whole afterwards. Every expert meets
    every token.
**Fails when:** matrices are small: M 2^B d numbers of 16 bits stand beside each of them, in a 256 x 256 one with two
    books of 256 words of eight a bit for every weight.
**Cost:** M B / d bits per weight with 16 / I of scales and 16 M 2^B d / (O I) of books; O(M O I^2 + M O I 2^B) a turn
    for each path of the beam, O(O I^2) a step of C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.kernels.codes import BYTE, summed_words
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import (
    Coded,
    chosen,
    each_coded,
    positive,
    quantised_example,
    row_bits,
)
from mixwell.precision._statistics import by_moments
from mixwell.precision._words import clustered, nearest_words


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of additive codebooks."""

    codebooks: int = 2  # M
    code_bits: int = 8  # B, of a word's number, 1 to 8
    piece: int = 8  # d, numbers that a word stands for; M B / d must be whole, 1 to 8
    rounds: int = 8  # turns of books and codes at most
    steps: int = 20  # of conjugate gradients on the books in a turn
    tolerance: float = 0.01  # the share of the error that a turn must save for another to follow, 0 to below 1
    beam: int = 1  # paths that the search keeps
    clustering: int = 100  # rounds of k-means at most
    tokens: int = 16_384  # of calibration text
    head: bool = False  # quantise the output head too
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, codebooks=1, code_bits=1, piece=1, rounds=0, steps=1, beam=1, clustering=1, tokens=1)
        check_above(self, max_kl_nats=0)
        if self.code_bits > BYTE:
            raise ValueError(f"code_bits is {self.code_bits}; expected 1 to {BYTE}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; expected 0 to below 1")
        bits, rest = divmod(self.codebooks * self.code_bits, self.piece)
        if rest or not 1 <= bits <= BYTE:
            raise ValueError(f"{self.codebooks} codebooks of {self.code_bits} bits over {self.piece} numbers; expected "
                             f"a whole number of bits for each, 1 to {BYTE}")

    @property
    def bits(self) -> int:
        """Of codes for each weight."""
        return self.codebooks * self.code_bits // self.piece


def needs(config: Config) -> Needs:
    """Text, for the inputs of every weight."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


@dataclass(frozen=True, eq=False)
class Additive:
    """A matrix as sums of words. J pieces of a row, K words of a book."""

    books_MKd: Tensor
    codes_OJM: Tensor  # int64
    scale_O: Tensor

    def unscaled(self) -> Tensor:
        """The sums of words [O, I]."""
        return spelt(self.books_MKd, self.codes_OJM)

    def weight(self) -> Tensor:
        """The matrix [O, I]."""
        return self.scale_O.unsqueeze(1) * self.unscaled()


def spelt(books_MKd: Tensor, codes_OJM: Tensor) -> Tensor:
    """Sum over books of the words of each piece, [O, I]."""
    whole = codes_OJM.flatten(1)
    return summed_words(books_MKd, whole)


def error_of(found: Additive, weight: Tensor, moments_II: Tensor) -> float:
    """tr(D H D^T)."""
    change = found.weight() - weight
    outputs = change @ moments_II
    return float((outputs * change).sum())


def start(weight: Tensor, config: Config, generator: torch.Generator) -> Additive:
    """Rows over their root mean square, then k-means of what the books before leave."""
    squares_O = weight.square().mean(1)
    scale_O = positive(squares_O.sqrt())
    left_Nd = (weight / scale_O.unsqueeze(1)).reshape(-1, config.piece)
    books, codes = [], []
    for _ in range(config.codebooks):
        words_Kd = clustered(left_Nd, 2**config.code_bits, config.clustering, generator)
        nearest_N = nearest_words(left_Nd, words_Kd)
        left_Nd = left_Nd - words_Kd[nearest_N]
        books.append(words_Kd)
        codes.append(nearest_N.view(len(weight), -1))
    return Additive(torch.stack(books), torch.stack(codes, -1), scale_O)


def conjugate(times: Callable[[Tensor], Tensor], wanted: Tensor, x: Tensor, steps: int) -> Tensor:
    """x after so many steps of conjugate gradients towards A x = wanted, A symmetric and never negative."""
    left = wanted - times(x)
    way, size = left, left.square().sum()
    least = torch.finfo(x.dtype).eps ** 2 * wanted.square().sum()
    for _ in range(steps):
        if not bool(size > least):
            break
        product = times(way)
        bend = (way * product).sum()
        if not bool(bend > 0):
            break
        length = size / bend
        x = x + length * way
        left = left - length * product
        before, size = size, left.square().sum()
        way = left + size / before * way
    return x


def with_books(found: Additive, weight: Tensor, moments_II: Tensor, steps: int) -> Additive:
    """The codebooks moved towards the least error with codes and scales as they are."""
    books = found.books_MKd
    squares_O1 = found.scale_O.square().unsqueeze(1)

    def gathered(rows_OI: Tensor) -> Tensor:
        """The sum of the pieces that each word stands in."""
        values_Nd = rows_OI.reshape(-1, books.shape[-1])
        made = torch.zeros_like(books)
        by_book_NM = found.codes_OJM.flatten(0, 1)
        for own, codes_N in zip(made, by_book_NM.T):
            own.index_add_(0, codes_N, values_Nd)
        return made

    def times(words_MKd: Tensor) -> Tensor:
        outputs = spelt(words_MKd, found.codes_OJM) @ moments_II
        return gathered(squares_O1 * outputs)

    aim = found.scale_O.unsqueeze(1) * (weight @ moments_II)
    moved = conjugate(times, gathered(aim), books, steps)
    return replace(found, books_MKd=moved)


def with_scales(found: Additive, weight: Tensor, moments_II: Tensor) -> Additive:
    """The scales of least error with books and codes as they are; one that nothing depends on stays."""
    unit = found.unscaled()
    outputs = unit @ moments_II
    own_O = (outputs * unit).sum(1)
    cross_O = (outputs * weight).sum(1)
    fitting = (cross_O > 0) & (own_O > 0)
    best_O = cross_O / positive(own_O)
    kept_O = torch.where(fitting, best_O, found.scale_O)
    return replace(found, scale_O=kept_O)


@dataclass(frozen=True, eq=False)
class Paths:
    """What a beam search holds: P paths of each row."""

    codes_POJM: Tensor
    left_POI: Tensor  # W - W'
    error_PO: Tensor

    def kept(self, parent_PO: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and rests of the paths named, for each row."""
        rows_O = torch.arange(parent_PO.shape[1], device=parent_PO.device)
        chosen_PO = parent_PO, rows_O
        return self.codes_POJM[chosen_PO], self.left_POI[chosen_PO]


def searched(found: Additive, weight: Tensor, moments_II: Tensor, beam: int, generator: torch.Generator) -> Additive:
    """The codes after one pass of beam search over all pieces in random order; no row's error grows."""
    left = weight - found.weight()
    outputs = left @ moments_II
    errors_O = (left * outputs).sum(1)
    one = (part.unsqueeze(0) for part in (found.codes_OJM, left, errors_O))
    paths = Paths(*one)
    _, pieces, books = found.codes_OJM.shape
    order = torch.randperm(pieces, generator=generator)
    for piece in order.tolist():
        for book in range(books):
            paths = _extended(paths, found, moments_II, piece, book, beam)
    best_O = paths.error_PO.argmin(0)
    codes, _ = paths.kept(best_O[None])
    return replace(found, codes_OJM=codes[0])


def _extended(paths: Paths, found: Additive, moments_II: Tensor, piece: int, book: int, beam: int) -> Paths:
    """The paths of least error among all words of one book at one piece."""
    words_Kd = found.books_MKd[book]
    numbers = words_Kd.shape[1]
    span = slice(piece * numbers, (piece + 1) * numbers)
    here_dd = moments_II[span, span]
    scale_O1 = found.scale_O.unsqueeze(1)
    now_PO = paths.codes_POJM[:, :, piece, book]
    now_POd = scale_O1 * words_Kd[now_PO]
    pull_POd = paths.left_POI @ moments_II[:, span]
    own_POd = now_POd @ here_dd
    without_PO = paths.error_PO + ((2 * pull_POd + own_POd) * now_POd).sum(-1)
    pull_POd = pull_POd + own_POd  # of what is left without a word of this book here
    squares_K = ((words_Kd @ here_dd) * words_Kd).sum(1)
    gain_POK = 2 * scale_O1 * (pull_POd @ words_Kd.T)
    errors_POK = without_PO.unsqueeze(-1) - gain_POK + scale_O1.square() * squares_K
    flat_OF = errors_POK.transpose(0, 1).flatten(1)
    count = min(beam, flat_OF.shape[1])
    best = flat_OF.topk(count, largest=False)
    parent_PO = (best.indices // len(words_Kd)).T
    code_PO = (best.indices % len(words_Kd)).T
    codes, left = paths.kept(parent_PO)
    before_POd = scale_O1 * words_Kd[codes[:, :, piece, book]]
    codes[:, :, piece, book] = code_PO
    left[:, :, span] += before_POd - scale_O1 * words_Kd[code_PO]
    return Paths(codes, left, best.values.T)


def fitted(weight: Tensor, moments_II: Tensor, config: Config, generator: torch.Generator) -> Additive:
    """The sums of words for a matrix [O, I] in float64 whose inputs have these second moments."""
    found = start(weight, config, generator)
    last = float("inf")
    for _ in range(config.rounds):
        found = with_books(found, weight, moments_II, config.steps)
        found = with_scales(found, weight, moments_II)
        error = error_of(found, weight, moments_II)
        if error > (1 - config.tolerance) * last:
            break
        last = error
        found = searched(found, weight, moments_II, config.beam, generator)
    books = found.books_MKd.half().double()
    return with_scales(replace(found, books_MKd=books), weight, moments_II)


def encode(weight: Tensor, moments_II: Tensor, config: Config, generator: torch.Generator) -> Coded:
    """The codes of a matrix [O, I] whose inputs have these second moments."""
    width = weight.shape[1]
    if width % config.piece:
        raise ValueError(f"pieces of {config.piece} do not divide rows of {width}; set piece to a divisor")
    found = fitted(weight.double(), moments_II.double(), config, generator)
    words = found.codes_OJM.flatten(1).to(torch.uint8)
    scale = positive(found.scale_O.unsqueeze(1).to(torch.bfloat16))
    return Coded(codes=words, bits=row_bits(weight, config.bits), scale=scale, codebooks=found.books_MKd.half())


def encode_all(weight: Tensor, moments: Tensor, config: Config, generator: torch.Generator) -> Coded:
    """The codes of a matrix, or of each expert of a stack; moments [I, I] are all experts', [E, I, I] one for each."""
    return each_coded(weight, moments, 2, partial(encode, config=config, generator=generator))


def bits_per_weight(config: Config, rows: int, width: int) -> float:
    """Stored bits for each weight of a matrix, scales and codebooks included, without the bits of rows."""
    words = config.codebooks * 2**config.code_bits
    beside = rows + words * config.piece  # numbers of 16 bits
    return config.bits + 16 * beside / (rows * width)


@method(title="AQLM: sums of words from learned codebooks",
        paper="Extreme Compression of Large Language Models via Additive Quantization", year=2024,
        tags={"codes", "calibrated"})
def additive(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are sums of words. `generator` draws first words and the order of pieces.

    Raises `MixwellError` as `precision.integers`, and where pieces do not divide a row.
    """
    names = chosen(checkpoint, config.head)
    return by_moments(checkpoint, names, calibration,
                      lambda weight, moments: encode_all(weight, moments, config, generator))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(code_bits=4, piece=4, rounds=1, steps=3, clustering=2, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
