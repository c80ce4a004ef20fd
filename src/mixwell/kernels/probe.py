"""Which library serves which product in float32 on this machine: measured once, kept, and the same in every sitting.

A choice decides how sums are rounded, and so the bits of a training run: it goes by a few classes of shapes only, an
alternative must be clearly faster than torch's BLAS, and what was measured once stands, even where other programs ran
meanwhile. `choices().digest()` tells two machines' choices apart.

Legend: N rows, D width, M outputs.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.core.files import digest
from mixwell.core.measured import kept
from mixwell.kernels.products import PACKED, PLAIN, Product, int8_works, through, works

ROWS = (1, 2, 4, 8, 32, 256)  # the least rows of each class, and what stands for it when measured
WIDTHS = {"small": (64, 64), "large": (704, 512)}  # outputs and inputs that stand for a class of weights
LARGE = 1 << 16  # numbers in a weight from which on it is large: a quarter of a megabyte
FEW = 8  # rows up to which reading the weight takes longer than the sums, so that it is measured out of the cache
GAIN = 0.95  # share of the time of the plainest library that another may take at most
# the same for oneDNN with plain weights: it compiles for each number of rows, and experts widen their rows for it
GAIN_ONEDNN = 0.9
RING_BYTES = 1 << 26  # weights measured in turn, so that each comes from main memory
PRODUCTS = ("nt", "nt into", "nn", "nn into", "tn into")  # "into": the result is written into a given tensor
_FORWARD = PRODUCTS[:2]

INT8_TYPES = (torch.float32, torch.bfloat16)
INT8_CLASSES = 4  # classes of rows in which products straight from int8 are tried

_SHORT_S = 1e-3  # a call much shorter than this is repeated

Call = Callable[[], Any]


@dataclass(frozen=True)
class Choices:
    """The fastest library by class of product, rows and weight."""

    plain: Mapping[tuple[str, int, str], str]  # (kind, index in ROWS, key of WIDTHS) -> name in PLAIN
    exact: tuple[str, ...]  # for weights packed for inference, by class of rows
    half: tuple[str, ...]  # the same where the weight fits float16
    # rows of each type up to which torch's product straight from int8 beats one with the weight made wide first
    int8_rows: Mapping[torch.dtype, int] = field(default_factory=dict)

    def library(self, kind: str, rows: int, numel: int) -> str:
        """The library for a product of `kind` of so many rows with a weight of `numel` numbers."""
        size = "large" if numel >= LARGE else "small"
        return self.plain[kind, row_class(rows), size]

    def digest(self) -> str:
        """A short name of these choices: what differs in it may round otherwise."""
        plain = sorted(self.plain.items())
        int8_rows = [[str(dtype), rows] for dtype, rows in self.int8_rows.items()]
        return digest([plain, self.exact, self.half, int8_rows])


_CLASSES = tuple(sum(rows >= least for least in ROWS[1:]) for rows in range(ROWS[-1] + 1))


def row_class(rows: int) -> int:
    """Index in ROWS of the class that `rows` belongs to."""
    return _CLASSES[min(rows, ROWS[-1])]


def choices() -> Choices:
    """This machine's choices at torch's present number of threads."""
    return _choices(torch.get_num_threads())


@functools.cache
def _choices(threads: int) -> Choices:
    what = ["library of each product", PRODUCTS, ROWS, WIDTHS, GAIN, GAIN_ONEDNN, list(PLAIN), list(PACKED)]
    found = kept(what, measure_products, threads, once=True, fields=("plain", "exact", "half", "int8_rows"))
    plain = {}
    for kind, rows, size in itertools.product(PRODUCTS, ROWS, WIDTHS):
        library = found["plain"][_key(kind, rows, size)]
        plain[kind, row_class(rows), size] = library
    rows_of = found["int8_rows"]
    int8_rows = {dtype: int(rows_of[str(dtype)]) for dtype in INT8_TYPES}
    exact, half = (tuple(found[name]) for name in ("exact", "half"))
    return Choices(plain, exact, half, int8_rows)


def _key(kind: str, rows: int, size: str) -> str:
    return f"{kind}, {rows} rows, {size}"


def measure_products() -> dict[str, Any]:
    """Plain data: the library of each class, by the shortest of a few runs each."""
    with torch.inference_mode():
        plain = _measure_plain()
        ring = _Ring(*WIDTHS["large"])
        for rows in ROWS:
            if rows <= FEW:
                few = fastest(ring.calls(rows, PLAIN))
                plain |= {_key(kind, rows, "large"): few for kind in _FORWARD}
        exact, half = [], []
        for rows in ROWS:
            plainest = plain[_key("nt", rows, "large")]
            calls = ring.calls(rows, (plainest, *PACKED))
            half.append(fastest(calls))
            calls.pop("fp16", None)
            exact.append(fastest(calls))
        int8_rows = {str(dtype): _int8_rows(dtype) for dtype in INT8_TYPES}
    return {"plain": plain, "exact": exact, "half": half, "int8_rows": int8_rows}


def _measure_plain() -> dict[str, str]:
    """The library of each class whose weight is in cache when it is read."""
    found = {}
    for kind, rows, size in itertools.product(PRODUCTS, ROWS, WIDTHS):
        cold = kind in _FORWARD and rows <= FEW and size == "large"
        if not cold:
            calls = _plain_calls(kind, rows, *WIDTHS[size])
            found[_key(kind, rows, size)] = fastest(calls)
    return found


def _int8_rows(dtype: torch.dtype) -> int:
    """The most rows of a class up to which the product straight from int8 is faster."""
    outputs, inputs = WIDTHS["large"]
    weight = torch.ones(outputs, inputs, dtype=torch.int8)
    scale = torch.ones(outputs, dtype=dtype)
    most = 0
    for rows, above in itertools.pairwise(ROWS[: INT8_CLASSES + 1]):
        x = torch.ones(rows, inputs, dtype=dtype)
        calls = {"wide": functools.partial(_wide_int8, x, weight),
                 "int8": functools.partial(torch._weight_int8pack_mm, x, weight, scale)}
        if not int8_works(dtype) or fastest(calls) == "wide":
            break
        most = above - 1
    return most


def _wide_int8(x_ND: Tensor, weight_MD: Tensor) -> Tensor:
    return torch.mm(x_ND, weight_MD.to(x_ND.dtype).t())


def _plain_calls(kind: str, rows: int, outputs: int, inputs: int) -> dict[str, Call]:
    """The product of `kind` through every library that gives plain results of this kind."""
    x = torch.ones(rows, inputs)
    weight = torch.ones(outputs, inputs)
    grad = torch.ones(rows, outputs)
    factors = {"nt": (x, weight), "nn": (grad, weight.t()), "tn": (grad.t(), x.t())}
    a, b = factors[kind[:2]]
    out = torch.empty(a.shape[0], b.shape[0])
    into = out if kind.endswith("into") else None
    names = [name for name in ("blas", "onednn") if works(name, torch.float32)]
    return {name: functools.partial(through, name, a, b, into) for name in names}


class _Ring:
    """Equal weights in turn, in every form, so that none is in cache when its turn comes."""

    def __init__(self, outputs: int, inputs: int) -> None:
        count = max(2, RING_BYTES // (4 * outputs * inputs))
        weights = list(torch.ones(count, outputs, inputs))
        self.inputs = inputs
        self.turn = itertools.cycle(range(count))
        self.products: dict[str, Product] = dict(PLAIN)
        self.forms: dict[str, list[Any]] = dict.fromkeys(PLAIN, weights)
        for name, (product, pack) in PACKED.items():
            self.products[name] = product
            if works(name, torch.float32):
                self.forms[name] = [pack(weight) for weight in weights[: count // 4]]

    def calls(self, rows: int, names: Iterable[str]) -> dict[str, Call]:
        """A call for each form that works here, which takes the next weight."""
        x = torch.ones(rows, self.inputs)
        working = [name for name in names if name in self.forms and works(name, torch.float32)]
        return {name: functools.partial(self._product, x, name) for name in working}

    def _product(self, x: Tensor, name: str) -> Tensor:
        weights = self.forms[name]
        turn = next(self.turn) % len(weights)
        return self.products[name](x, weights[turn])


def fastest(calls: Mapping[str, Call], turns: int = 6) -> str:
    """The name of the fastest call; the first, unless another is faster by more than the noise."""
    first_s = {name: _seconds(call) for name, call in calls.items()}  # may compile a shape: counts for nothing
    repeats = {name: max(1, min(4, int(_SHORT_S / seconds))) for name, seconds in first_s.items()}
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            seconds = _seconds(call, repeats[name])
            times[name] = min(times[name], seconds)
    plainest = next(iter(calls))
    best = min(times, key=lambda name: times[name])
    gain = GAIN_ONEDNN if best == "onednn" else GAIN
    enough = times[best] < gain * times[plainest]
    return best if enough else plainest


def _seconds(call: Call, repeats: int = 1) -> float:
    # the time of one thread counts no other program's turns
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats
