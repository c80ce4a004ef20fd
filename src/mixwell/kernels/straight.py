"""Products straight from packed codes, by compiled loops where numba is there; nothing is made plain in between.

Without numba, on another device, and for codes that the loops do not read (codebooks, groups that fit no sixteen
numbers), nothing here serves, and `mixwell.kernels.codes` makes the weight plain by torch: the same numbers up to
rounding, and the same bits where a weight is only made plain.

Legend: N rows, I width, O outputs, E experts, K experts of a token.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.machine import physical_cores
from mixwell.core.measured import kept
from mixwell.kernels.probe import ROWS, WIDTHS, fastest

TYPES = (torch.float32, torch.bfloat16)  # of inputs that are served
SCALES = (torch.float32, torch.bfloat16, torch.uint8)  # in the order of the loops' kinds
LONGEST_RUN = 64
Coded = Any  # a `codes.CodedWeight`
Rows = Any  # rows of it that have the same bits, a `codes.Block`
ROW_CLASSES = 5  # classes of rows in which products straight from codes are tried
A_PART = 1 << 19  # numbers of a weight that are worth waking a thread for


@functools.cache
def loops() -> ModuleType | None:
    """The compiled loops; None without numba."""
    try:
        from mixwell.kernels import loops as found
    except ImportError:
        return None
    return found


def compiled() -> ModuleType:
    """The loops where they are known to be there."""
    found = loops()
    assert found is not None
    return found


class Step(NamedTuple):
    """Bytes from one matrix of a stack to the next, part by part."""

    codes: int
    scale: int
    zero: int
    table: int


class Matrix(NamedTuple):
    """Some rows of a matrix, or of the first one of a stack, as the loops read them."""

    form: Any  # loops.Form
    place: Any  # loops.Place
    rows: int
    held: tuple[Tensor | None, ...]  # what the place points to


@functools.cache
def form_of(planes: tuple[int, ...], width: int, groups: int, scale: torch.dtype) -> Any:
    """How rows are coded, for the loops; None where they do not read such."""
    bits, sections = sum(planes), 8 // planes[-1]
    if loops() is None or scale not in SCALES or width % sections or width % groups:
        return None
    group, values = width // groups, width // sections
    run = math.gcd(group, values, LONGEST_RUN)
    if run % compiled().LANES:
        return None
    first, second, third = (*planes, 0, 0)[:3]
    bytes_each = width * bits // 8
    kind = SCALES.index(scale)
    each, half = group // run, width // run // 2
    behind, begun = divmod(half, each)
    return compiled().Form(bits, first, second, third, sections, width, values, bytes_each, groups, each, run, half,
                           behind, each - begun, kind)


def matrix_of(weight: Coded, block: Rows) -> Matrix | None:
    """Rows of a coded weight [O, I], or of the first matrix of a stack; None where the loops do not read them."""
    scale, codes = weight.scale, weight.codes
    served = codes.is_cpu and weight.codebooks is None and codes.is_contiguous() and scale.is_contiguous()
    if not served:
        return None
    *_, outputs, width = weight.shape
    form = form_of(block.planes, width, scale.shape[-1], scale.dtype)
    if form is None or not _fits(weight, block):
        return None
    table = None if weight.table is None else weight.table.float().contiguous()
    zero = None if weight.zero is None else weight.zero.contiguous()
    parts = scale, zero, table, block.rows
    addresses = [0 if part is None else part.data_ptr() for part in parts]
    place = compiled().Place(codes.data_ptr() + block.start, *addresses)
    count = outputs if block.rows is None else len(block.rows)
    return Matrix(form, place, count, parts)


def _fits(weight: Coded, block: Rows) -> bool:
    """Whether all that the loops would read of a weight's parts is there: they look at no bounds."""
    scale, zero, table = weight.scale, weight.zero, weight.table
    if block.stop > weight.codes.numel() or scale.shape[:-1] != weight.shape[:-1]:
        return False
    if zero is not None and zero.shape != scale.shape:
        return False
    words = 1 << block.bits
    return table is None or table.shape[-1] >= words


class _Known:
    """What was found of a weight whose codes lay at an address; copies and pickles of it know nothing."""

    def __init__(self, place: int = -1, value: Any = None) -> None:
        self.place, self.value = place, value

    def __reduce__(self) -> tuple[type[_Known], tuple[()]]:
        return _Known, ()


def _once(find: Callable[[Coded], Any]) -> Callable[[Coded], Any]:
    """What is found of a weight, found once for as long as its codes lie where they lay."""
    name = f"read_{find.__name__}"

    @functools.wraps(find)
    def found(weight: Coded) -> Any:
        held = weight.__dict__
        place = weight.codes.data_ptr()
        known = held.get(name)
        if known is None or known.place != place:
            held[name] = known = _Known(place, find(weight))
        return known.value

    return found


@_once
def matrices_of(weight: Coded) -> list[Matrix] | None:
    """All rows of a coded weight [O, I]; None where the loops do not read all of them."""
    (blocks,) = weight.blocks
    found = []
    for block in blocks:
        matrix = matrix_of(weight, block)
        if matrix is None:
            return None
        found.append(matrix)
    return found


def dequantised(weight: Coded, dtype: torch.dtype) -> Tensor | None:
    """A coded weight [O, I] as a plain tensor, its columns as they are stored; None where nothing here serves."""
    matrices = matrices_of(weight) if dtype in TYPES else None
    return None if matrices is None else made_plain(matrices, weight.shape[0], dtype)


def made_plain(matrices: list[Matrix], outputs: int, dtype: torch.dtype) -> Tensor:
    """The rows of a matrix [O, I] as numbers."""
    width = matrices[0].form.width
    whole = torch.empty(outputs, width, dtype=dtype)
    half = dtype == torch.bfloat16
    for form, place, count, _ in matrices:
        compiled().row_numbers(form, place, 0, count, whole.data_ptr(), half)
    return whole


def product(weight: Coded, x_ND: Tensor) -> Tensor | None:
    """[N, I] -> [N, O] with a coded weight whose columns stand in their order; None where making it plain is faster."""
    rows = x_ND.shape[0]
    if x_ND.dtype not in TYPES or not x_ND.is_cpu or not rows or rows > most_rows(x_ND.dtype):
        return None
    _check_width(x_ND, weight)
    matrices = matrices_of(weight)
    return None if matrices is None else multiplied(matrices, x_ND, weight.shape[0])


def multiplied(matrices: list[Matrix], x_ND: Tensor, outputs: int) -> Tensor:
    """[N, I] -> [N, O], straight from codes."""
    rows, width = x_ND.shape
    x = x_ND.float().contiguous()
    y = x.new_empty(rows, outputs)
    parts = min(torch.get_num_threads(), max(1, outputs * width // A_PART))
    held = x.new_empty(parts, width)
    for matrix in matrices:
        _shared(matrix, parts, x.data_ptr(), rows, y.data_ptr(), outputs, held.data_ptr())
    return y.to(x_ND.dtype)


def _shared(matrix: Matrix, parts: int, *given: int) -> None:
    """A product with its coded rows shared out among threads."""
    form, place, count, _ = matrix
    *rest, held = given
    bounds = [count * part // parts for part in range(parts + 1)]
    jobs = []
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        own = held + 4 * part * form.width
        jobs.append(functools.partial(compiled().products, form, place, start, stop, *rest, own))
    _together(jobs)


def _together(jobs: Sequence[Callable[[], object]]) -> None:
    """All jobs, each in a thread of its own; the loops hold no lock meanwhile."""
    first, *others = jobs
    waiting = [_pool(os.getpid()).submit(job) for job in others]
    first()
    for job in waiting:
        job.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; what a fork copies of another's would never answer."""
    return ThreadPoolExecutor(physical_cores())


@_once
def stack_of(weight: Coded) -> tuple[Matrix, Step] | None:
    """A stack [E, O, I] all of whose rows have the same bits; None where the loops do not read it."""
    first = weight.blocks[0]
    alike = all(len(own) == 1 and own[0].bits == first[0].bits for own in weight.blocks)
    if not alike or weight.order is not None or weight.input_bits or weight.block_bits is not None:
        return None
    matrix = matrix_of(weight, first[0])
    if matrix is None:
        return None
    scale, zero, table, _ = matrix.held
    strides = [0 if part is None else part[0].numel() * part.element_size() for part in (scale, zero, table)]
    return matrix, Step(first[0].stop, *strides)


def expert_sum(x_1D: Tensor, weights_1K: Tensor, experts: list[int], gate_up: Coded, down: Coded,
               ) -> Tensor | None:
    """One token through the SwiGLU experts named, -1 being none, and their weighted sum [1, D]; None: not served.

    Raises ValueError where an expert or the width is none of the stacks'.
    """
    if x_1D.dtype not in TYPES or not most_rows(x_1D.dtype):
        return None
    into, out = stack_of(gate_up), stack_of(down)
    if into is None or out is None:
        return None
    count, outputs, hidden = down.shape
    _check_width(x_1D, gate_up)
    if max(experts) >= count:
        raise ValueError(f"expert {max(experts)} of {count}; expected numbers below")
    numbers = 3 * len(experts) * outputs * hidden
    parts = min(torch.get_num_threads(), len(experts), max(1, numbers // A_PART))
    x = x_1D.float().contiguous()
    weights = weights_1K.float().contiguous()
    indices = torch.tensor(experts)
    y = x.new_empty(parts, outputs)
    longest = max(x.shape[1], hidden)
    held = x.new_empty(parts, 2 * hidden + outputs + longest)
    bounds = [len(experts) * part // parts for part in range(parts + 1)]
    jobs = []
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        chosen = indices[start:].data_ptr(), weights[0, start:].data_ptr(), stop - start
        own = held[part]
        behind = own[2 * hidden + outputs :]
        places = x.data_ptr(), y[part].data_ptr(), outputs, own.data_ptr(), behind.data_ptr()
        jobs.append(functools.partial(compiled().expert_sum, *_alike(into), *_alike(out), *chosen, *places))
    _together(jobs)
    whole = y if parts == 1 else y.sum(0, keepdim=True)
    return whole.to(x_1D.dtype)


def _alike(stack: tuple[Matrix, Step]) -> tuple[Any, Any, Step]:
    """What the loops are told of a stack."""
    matrix, step = stack
    return matrix.form, matrix.place, step


def _check_width(x: Tensor, weight: Coded) -> None:
    """Refuse rows that the loops would read beyond."""
    given = x.shape[-1]
    wanted = weight.shape[-1]
    if given != wanted:
        raise ValueError(f"rows of {given} for a weight of {wanted} inputs; expected as many")


def most_rows(dtype: torch.dtype) -> int:
    """The most rows of a type for which the product straight from codes is faster; 0 without numba."""
    if loops() is None:
        return 0
    threads = torch.get_num_threads()
    return _most_rows(threads)[dtype]


@functools.cache
def _most_rows(threads: int) -> Mapping[torch.dtype, int]:
    what = ["rows straight from codes", ROWS[:ROW_CLASSES], WIDTHS["large"], compiled().target()]
    names = [str(dtype) for dtype in TYPES]
    found = kept(what, measure_rows, threads, once=True, fields=names)
    return {dtype: int(found[str(dtype)]) for dtype in TYPES}


def measure_rows() -> dict[str, int]:
    """By type, the most rows of a class up to which products straight from codes of four bits are faster."""
    outputs, inputs = WIDTHS["large"]
    form = form_of((4,), inputs, inputs // LONGEST_RUN, torch.bfloat16)
    codes = torch.zeros(outputs, inputs // 2, dtype=torch.uint8)
    scale = torch.ones(outputs, inputs // LONGEST_RUN, dtype=torch.bfloat16)
    place = compiled().Place(codes.data_ptr(), scale.data_ptr(), 0, 0, 0)
    matrices = [Matrix(form, place, outputs, (codes, scale))]
    found = {}
    with torch.inference_mode():
        for dtype in TYPES:
            found[str(dtype)] = _rows_of(dtype, matrices, outputs, inputs)
    return found


def _rows_of(dtype: torch.dtype, matrices: list[Matrix], outputs: int, inputs: int) -> int:
    most = 0
    for rows, above in itertools.pairwise(ROWS[: ROW_CLASSES + 1]):
        x = torch.ones(rows, inputs, dtype=dtype)
        calls = {"plain": functools.partial(_by_plain, matrices, x, outputs),
                 "straight": functools.partial(multiplied, matrices, x, outputs)}
        if fastest(calls) == "plain":
            break
        most = above - 1
    return most


def _by_plain(matrices: list[Matrix], x_ND: Tensor, outputs: int) -> Tensor:
    whole = made_plain(matrices, outputs, x_ND.dtype)
    return torch.mm(x_ND, whole.t())
