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
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.measured import kept
from mixwell.kernels.probe import LARGE, ROWS, WIDTHS, fastest
from mixwell.kernels.products import through

if TYPE_CHECKING:
    from mixwell.kernels.codes import Block, CodedWeight

TYPES = (torch.float32, torch.bfloat16)  # of inputs that are served
SCALES = (torch.float32, torch.bfloat16, torch.uint8)  # in the order of the loops' kinds
LONGEST_RUN = 64
ROW_CLASSES = 5  # classes of rows in which products straight from codes are tried
_ONE_AT_A_TIME = threading.Lock()  # not every way in which numba starts threads bears being called by two


@functools.cache
def loops() -> ModuleType | None:
    """The compiled loops; None without numba."""
    try:
        from mixwell.kernels import loops as found
    except ImportError:
        return None
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
    count: int  # rows
    held: tuple[Tensor | None, ...]  # what the place points to


@functools.cache
def form_of(bits: int, width: int, groups: int, scale: torch.dtype) -> Any:
    """How rows are coded, for the loops; None where they do not read such."""
    from mixwell.kernels.codes import BYTE, planes

    compiled = loops()
    widths = planes(bits)
    sections = BYTE // widths[-1]
    if compiled is None or scale not in SCALES or width % sections or width % groups:
        return None
    group, values = width // groups, width // sections
    run = math.gcd(group, values, LONGEST_RUN)
    if run % compiled.LANES:
        return None
    first, second, third = (*widths, 0, 0)[:3]
    bytes_each = width * bits // BYTE
    kind = SCALES.index(scale)
    return compiled.Form(bits, first, second, third, sections, width, values, bytes_each, groups, group // run, run,
                         kind)


def matrix_of(weight: CodedWeight, block: Block) -> Matrix | None:
    """Rows of a coded weight [O, I], or of the first matrix of a stack; None where the loops do not read them."""
    scale, codes = weight.scale, weight.codes
    served = codes.is_cpu and weight.codebooks is None and codes.is_contiguous() and scale.is_contiguous()
    if not served:
        return None
    *_, outputs, width = weight.shape
    form = form_of(block.bits, width, scale.shape[-1], scale.dtype)
    if form is None:
        return None
    table = None if weight.table is None else weight.table.float().contiguous()
    zero = None if weight.zero is None else weight.zero.contiguous()
    parts = scale, zero, table, block.rows
    addresses = [0 if part is None else part.data_ptr() for part in parts]
    compiled = loops()
    assert compiled is not None
    place = compiled.Place(codes.data_ptr() + block.start, *addresses)
    count = outputs if block.rows is None else len(block.rows)
    return Matrix(form, place, count, parts)


def matrices_of(weight: CodedWeight) -> list[Matrix] | None:
    """All rows of a coded weight [O, I]; None where the loops do not read all of them."""
    (blocks,) = weight.blocks
    found = []
    for block in blocks:
        matrix = matrix_of(weight, block)
        if matrix is None:
            return None
        found.append(matrix)
    return found


def dequantised(weight: CodedWeight, dtype: torch.dtype) -> Tensor | None:
    """A coded weight [O, I] as a plain tensor, its columns as they are stored; None where nothing here serves."""
    matrices = matrices_of(weight) if dtype in TYPES else None
    if matrices is None:
        return None
    whole = torch.empty(weight.shape, dtype=dtype)
    half = dtype == torch.bfloat16
    for form, place, count, _ in matrices:
        loops().row_numbers(form, place, 0, count, whole.data_ptr(), half)  # type: ignore[union-attr]
    return whole


def product(weight: CodedWeight, x_ND: Tensor) -> Tensor | None:
    """[N, I] -> [N, O] with a coded weight whose columns stand in their order; None where making it plain is faster."""
    rows = x_ND.shape[0]
    if x_ND.dtype not in TYPES or not x_ND.is_cpu or not rows or rows > most_rows(x_ND.dtype):
        return None
    matrices = matrices_of(weight)
    return None if matrices is None else multiplied(matrices, x_ND, weight.shape[0])


def multiplied(matrices: list[Matrix], x_ND: Tensor, outputs: int) -> Tensor:
    """[N, I] -> [N, O], straight from codes."""
    rows, width = x_ND.shape
    x = x_ND.float().contiguous()
    y = x.new_empty(rows, outputs)
    parts = torch.get_num_threads() if outputs * width >= LARGE else 1
    held = x.new_empty(parts, width)
    for form, place, count, _ in matrices:
        given = form, place, count, x.data_ptr(), rows, y.data_ptr(), outputs, held.data_ptr()
        _shared(given, parts)
    return y.to(x_ND.dtype)


def _shared(given: tuple[Any, ...], parts: int) -> None:
    """A product with its coded rows shared out among threads; where another call has them, by this thread alone."""
    compiled = loops()
    assert compiled is not None
    alone = parts == 1 or not _ONE_AT_A_TIME.acquire(blocking=False)
    if alone:
        form, place, count, *rest = given
        compiled.products(form, place, 0, count, *rest)
        return
    try:
        compiled.shared_products(*given, compiled.threads(parts))
    finally:
        _ONE_AT_A_TIME.release()


def stack_of(weight: CodedWeight) -> tuple[Matrix, Step] | None:
    """A stack [E, O, I] all of whose rows have the same bits; None where the loops do not read it."""
    first = weight.blocks[0]
    if len(first) > 1 or weight.order is not None or weight.input_bits or weight.block_bits is not None:
        return None
    each = first[0].stop
    if any(own[0].start != e * each or own[0].stop != (e + 1) * each for e, own in enumerate(weight.blocks)):
        return None
    matrix = matrix_of(weight, first[0])
    if matrix is None:
        return None
    scale, zero, table, _ = matrix.held
    strides = [0 if part is None else part[0].numel() * part.element_size() for part in (scale, zero, table)]
    return matrix, Step(each, *strides)


def expert_sum(x_1D: Tensor, weights_1K: Tensor, experts: list[int], gate_up: CodedWeight, down: CodedWeight,
               ) -> Tensor | None:
    """One token through the SwiGLU experts named, -1 being none, and their weighted sum [1, D], in one call.

    None where the loops do not serve.
    """
    if x_1D.dtype not in TYPES or not most_rows(x_1D.dtype) or torch.get_num_threads() > 1:
        return None
    into, out = stack_of(gate_up), stack_of(down)
    if into is None or out is None:
        return None
    outputs, hidden = down.shape[1:]
    x = x_1D.float().contiguous()
    weights = weights_1K.float().contiguous()
    indices = torch.tensor(experts)
    y = x.new_empty(1, outputs)
    longest = max(x.shape[1], hidden)
    held = x.new_empty(2 * hidden + outputs + longest)
    behind = held[2 * hidden + outputs :]
    (into_matrix, into_step), (out_matrix, out_step) = into, out
    loops().expert_sum(into_matrix.form, into_matrix.place, into_step,  # type: ignore[union-attr]
                       out_matrix.form, out_matrix.place, out_step, indices.data_ptr(), weights.data_ptr(),
                       len(experts), x.data_ptr(), y.data_ptr(), outputs, held.data_ptr(), behind.data_ptr())
    return y.to(x_1D.dtype)


def most_rows(dtype: torch.dtype) -> int:
    """The most rows of a type for which the product straight from codes is faster; 0 without numba."""
    return 0 if loops() is None else _most_rows(torch.get_num_threads())[dtype]


@functools.cache
def _most_rows(threads: int) -> Mapping[torch.dtype, int]:
    compiled = loops()
    assert compiled is not None
    what = ["rows straight from codes", ROWS[:ROW_CLASSES], WIDTHS["large"], compiled.target()]
    names = [str(dtype) for dtype in TYPES]
    found = kept(what, measure_rows, threads, once=True, fields=names)
    return {dtype: int(found[str(dtype)]) for dtype in TYPES}


def measure_rows() -> dict[str, int]:
    """By type, the most rows of a class up to which products straight from codes of four bits are faster."""
    outputs, inputs = WIDTHS["large"]
    form = form_of(4, inputs, inputs // LONGEST_RUN, torch.bfloat16)
    compiled = loops()
    assert compiled is not None
    codes = torch.zeros(outputs, inputs // 2, dtype=torch.uint8)
    scale = torch.ones(outputs, inputs // LONGEST_RUN, dtype=torch.bfloat16)
    place = compiled.Place(codes.data_ptr(), scale.data_ptr(), 0, 0, 0)
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
        calls = {"plain": functools.partial(_made_plain, matrices, x, outputs),
                 "straight": functools.partial(multiplied, matrices, x, outputs)}
        if fastest(calls) == "plain":
            break
        most = above - 1
    return most


def _made_plain(matrices: list[Matrix], x_ND: Tensor, outputs: int) -> Tensor:
    form, place, count, _ = matrices[0]
    whole = x_ND.new_empty(outputs, form.width)
    half = x_ND.dtype == torch.bfloat16
    loops().row_numbers(form, place, 0, count, whole.data_ptr(), half)  # type: ignore[union-attr]
    return torch.mm(x_ND, whole.t())
