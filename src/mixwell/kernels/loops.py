"""Loops over packed codes, compiled by numba: products of rows with them, and codes made plain. Needs numba.

Codes are read as they are stored (`mixwell.kernels.codes`), in the order of a row: it is cut into sections, in each of
which every plane is shifted by one place, and a section into runs, whose numbers share a scale. The numbers of a run
are summed in float32 before the scale. What a row sums to does not depend on how rows are shared out among threads.

Legend: N rows of x, I width, O outputs, F hidden width. Addresses are integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from numba import config, float32, int32, njit

from mixwell.kernels.vectors import (
    LANES,
    above,
    added,
    bfloat16_at,
    byte_at,
    fields,
    float_at,
    fma,
    high_numbers,
    integer_at,
    joined,
    load,
    looked_up,
    low_numbers,
    numbers,
    power_at,
    put,
    scaled,
    spread,
    store,
    store_bfloat16,
    total,
    zeros,
)

_FREE = {"reassoc", "contract", "nsz"}  # what may be done with float arithmetic: sums in another order
FLOAT32, BFLOAT16, POWER = range(3)  # kinds of scales


class Form(NamedTuple):
    """How the rows of a matrix are coded."""

    bits: int
    first: int  # widths of the planes, lowest bits first; 0 where there is no such plane
    second: int
    third: int
    sections: int
    width: int  # I
    values: int  # of a section
    bytes: int  # of a row
    groups: int  # of a row: numbers that share a scale
    each: int  # runs of a group
    run: int  # numbers summed at once, a multiple of LANES
    half: int  # runs of half a row
    behind: int  # groups that end in the first half
    left: int  # runs that the next group has in the second half
    scale: int  # kind of the scales


class Place(NamedTuple):
    """Addresses of what the rows of a matrix are made of; 0 where there is no such part."""

    codes: int
    scale: int  # of the whole matrix, like what follows
    zero: int
    table: int  # float32
    rows: int  # int64: which rows of the matrix the codes stand for


def outer(function: Callable[..., Any]) -> Any:
    """Compiled when it is first called, and kept on disk where there is a place for it."""
    compiled = njit(nogil=True, fastmath=_FREE, error_model="numpy")(function)
    with suppress(RuntimeError):  # neither beside this file nor in the user's folder may anything be written
        compiled.enable_caching()
    return compiled


def inner(function: Callable[..., Any]) -> Any:
    """Compiled into the functions that call it."""
    return njit(forceinline=True, fastmath=_FREE, error_model="numpy")(function)


@inner
def _plane(address: Any, plane: Any, form: Any, section: Any) -> Any:
    """Where the section's values of a plane begin, and by how many bits they are shifted."""
    share = max(1, plane * form.sections // 8)  # sections in one place of the plane
    place = section // share
    start = (section - place * share) * form.values
    return address + start, int32(place * plane)


@inner
def _section(form: Any, row: Any, section: Any) -> Any:
    """Where the section's values of each plane begin, each with its shift."""
    share = form.width // 8
    second = row + share * form.first
    third = second + share * form.second
    return (_plane(row, form.first, form, section), _plane(second, form.second, form, section),
            _plane(third, form.third, form, section))


@inner
def _codes(form: Any, planes: Any, j: Any) -> Any:
    """Sixteen codes of a section, from the j-th."""
    first, second, third = planes
    codes = fields(first[0] + j, first[1], int32((1 << form.first) - 1))
    if form.second:
        more = fields(second[0] + j, second[1], int32((1 << form.second) - 1))
        codes = joined(codes, more, int32(form.first))
    if form.third:
        last = fields(third[0] + j, third[1], int32(1))
        codes = joined(codes, last, int32(form.first + form.second))
    return codes


@inner
def _numbers(form: Any, place: Any, planes: Any, j: Any, middle: Any) -> Any:
    """What sixteen codes stand for before the scale."""
    codes = _codes(form, planes, j)
    if place.table:
        return looked_up(place.table, codes)
    return above(codes, middle)


@inner
def _row(place: Any, number: Any) -> Any:
    """Which row of the matrix the codes of a number stand for."""
    if not place.rows:
        return number
    where = 8 * number
    return integer_at(place.rows + where)


@inner
def _scale(form: Any, place: Any, index: Any) -> Any:
    if form.scale == FLOAT32:
        return float_at(place.scale + 4 * index)
    if form.scale == BFLOAT16:
        return bfloat16_at(place.scale + 2 * index)
    return power_at(place.scale + index)


@inner
def _middle(form: Any, place: Any, index: Any) -> Any:
    """What is taken off the codes of a group."""
    if place.zero:
        return byte_at(place.zero + index)
    return int32(1 << (form.bits - 1))


@inner
def _start(form: Any, place: Any, index: Any, sums: Any) -> Any:
    """Where sixteen sums over a run begin, so that what is taken off its codes need not be taken off each."""
    middle = float32(_middle(form, place, index))
    return spread(middle * float_at(sums))


@inner
def _next(form: Any, index: Any, left: Any) -> Any:
    """The group of the next run, and how many runs of it are left."""
    left -= 1
    if left:
        return index, left
    return index + 1, form.each


@inner
def _bytes_sum(form: Any, place: Any, r: Any, row: Any, x: Any, sums: Any) -> Any:
    """The product of a row of whole bytes; `sums`: see `_run_sums`."""
    index = r * form.groups
    left = form.each
    whole = zeros()
    for start in range(0, form.width, form.run):
        part = _start(form, place, index, sums)
        for j in range(start, start + form.run, LANES):
            part = fma(numbers(row + j), load(x + 4 * j), part)
        scale = _scale(form, place, index)
        whole = fma(part, spread(scale), whole)
        sums += 4
        index, left = _next(form, index, left)
    return total(whole)


@inner
def _nibbles_sum(form: Any, place: Any, r: Any, row: Any, x: Any, sums: Any) -> Any:
    """The same of half bytes: the first half of the row lies in the low ones, the second in the high ones."""
    first = r * form.groups
    second = first + form.behind
    left, right = form.each, form.left
    upper = x + 4 * form.values
    behind = sums + 4 * form.half
    whole = zeros()
    for start in range(0, form.values, form.run):
        low = _start(form, place, first, sums)
        high = _start(form, place, second, behind)
        for j in range(start, start + form.run, LANES):
            low = fma(low_numbers(row + j), load(x + 4 * j), low)
            high = fma(high_numbers(row + j), load(upper + 4 * j), high)
        scale = _scale(form, place, first)
        whole = fma(low, spread(scale), whole)
        scale = _scale(form, place, second)
        whole = fma(high, spread(scale), whole)
        sums += 4
        behind += 4
        first, left = _next(form, first, left)
        second, right = _next(form, second, right)
    return total(whole)


@inner
def _write(into: Any, j: Any, numbers: Any, half: Any) -> None:
    if half:
        store_bfloat16(into + 2 * j, numbers)
    else:
        store(into + 4 * j, numbers)


@inner
def _row_numbers(form: Any, place: Any, r: Any, row: Any, into: Any, half: Any) -> None:
    """Writes one row as float32, or as bfloat16 where `half`."""
    index = r * form.groups
    left = form.each
    values = form.values
    simple = not (form.second or place.table)
    mask = int32((1 << form.first) - 1)
    for section in range(form.sections):
        planes = _section(form, row, section)
        codes, shift = planes[0]
        for start in range(0, values, form.run):
            scale = _scale(form, place, index)
            middle = _middle(form, place, index)
            for j in range(start, start + form.run, LANES):
                found = above(fields(codes + j, shift, mask), middle) if simple else _numbers(
                    form, place, planes, j, middle)
                _write(into, j, scaled(found, scale), half)
            index, left = _next(form, index, left)
        into += (2 if half else 4) * values


@outer
def row_numbers(form: Any, place: Any, start: Any, stop: Any, into: Any, half: Any) -> None:
    """Writes the coded rows from `start` to `stop` in their places of the matrix at `into`."""
    size = 2 if half else 4
    for number in range(start, stop):
        r = _row(place, number)
        _row_numbers(form, place, r, place.codes + number * form.bytes, into + size * r * form.width, half)


@inner
def _run_sums(form: Any, x: Any, sums: Any) -> None:
    """Writes the sum of each run of x, its sign turned and shared out among sixteen."""
    for start in range(0, form.width, form.run):
        whole = zeros()
        for j in range(start, start + form.run, LANES):
            whole = added(whole, load(x + 4 * j))
        put(sums, total(whole) / float32(-LANES))
        sums += 4


@outer
def row_sums(form: Any, place: Any, start: Any, stop: Any, x: Any, y: Any, held: Any) -> None:
    """The products of the coded rows from `start` to `stop` with one row at x: y [O].

    `held` [I] is written over.
    """
    direct = not place.table and (form.bits == 8 or form.bits == 4)
    if direct:
        _run_sums(form, x, held)
    for number in range(start, stop):
        r = _row(place, number)
        row = place.codes + number * form.bytes
        if not direct:
            _row_numbers(form, place, r, row, held, False)
            put(y + 4 * r, _sum_of_one(held, x, form.width))
            continue
        if form.bits == 8:
            found = _bytes_sum(form, place, r, row, x, held)
        else:
            found = _nibbles_sum(form, place, r, row, x, held)
        put(y + 4 * r, found)


@inner
def _sums_of_four(weight: Any, x: Any, width: Any, y: Any, stride: Any) -> None:
    """The products of a plain row with four rows at x, written `stride` numbers apart."""
    a, b, c, d = zeros(), zeros(), zeros(), zeros()
    step = 4 * width
    for j in range(0, step, 4 * LANES):
        w = load(weight + j)
        place = x + j
        a = fma(w, load(place), a)
        place += step
        b = fma(w, load(place), b)
        place += step
        c = fma(w, load(place), c)
        place += step
        d = fma(w, load(place), d)
    apart = 4 * stride
    put(y, total(a))
    y += apart
    put(y, total(b))
    y += apart
    put(y, total(c))
    y += apart
    put(y, total(d))


@inner
def _sum_of_one(weight: Any, x: Any, width: Any) -> Any:
    a = zeros()
    for j in range(0, 4 * width, 4 * LANES):
        a = fma(load(weight + j), load(x + j), a)
    return total(a)


@outer
def products(form: Any, place: Any, start: Any, stop: Any, x: Any, count: Any, y: Any, outputs: Any,
             held: Any) -> None:
    """The products of the coded rows from `start` to `stop` with `count` rows at x: y [N, O]."""
    if count == 1:
        row_sums(form, place, start, stop, x, y, held)
        return
    for number in range(start, stop):
        r = _row(place, number)
        into = y + 4 * r
        _row_numbers(form, place, r, place.codes + number * form.bytes, held, False)
        for n in range(0, count - 3, 4):
            _sums_of_four(held, x + 4 * n * form.width, form.width, into + 4 * n * outputs, outputs)
        for n in range(count // 4 * 4, count):
            put(into + 4 * n * outputs, _sum_of_one(held, x + 4 * n * form.width, form.width))


@inner
def _moved(place: Any, step: Any, expert: Any) -> Any:
    """Where an expert of a stack lies; `step`: the bytes from one to the next, part by part."""
    codes = place.codes + step.codes * expert
    scale = place.scale + step.scale * expert
    zero = place.zero + step.zero * expert
    table = place.table + step.table * expert
    return Place(codes, scale, zero, table, place.rows)


@inner
def _swiglu(gate_up: Any, hidden: Any) -> None:
    """silu(gate) up, written over gate."""
    between = 4 * hidden
    for place in range(gate_up, gate_up + between, 4):
        gate = float_at(place)
        up = float_at(place + between)
        silu = gate / (float32(1) + math.exp(-gate))
        put(place, silu * up)


@outer
def expert_sum(into: Any, into_place: Any, into_step: Any, out: Any, out_place: Any, out_step: Any, experts: Any,
               weights: Any, count: Any, x: Any, y: Any, outputs: Any, gate_up: Any, held: Any) -> None:
    """One row x through the SwiGLU experts named (-1: none), summed with their weights into y [O].

    experts int64, weights float32; `gate_up` holds 2 F + O numbers and is written over.
    """
    one = gate_up + 8 * out.width
    end = 4 * outputs
    for r in range(0, end, 4):
        put(y + r, float32(0))
    for k in range(count):
        expert = integer_at(experts + 8 * k)
        if expert < 0:
            continue
        here = _moved(into_place, into_step, expert)
        row_sums(into, here, 0, 2 * out.width, x, gate_up, held)
        _swiglu(gate_up, out.width)
        there = _moved(out_place, out_step, expert)
        row_sums(out, there, 0, outputs, gate_up, one, held)
        weight = float_at(weights + 4 * k)
        for r in range(0, end, 4):
            so_far = float_at(y + r)
            part = float_at(one + r)
            put(y + r, so_far + weight * part)


def target() -> str:
    """What the loops are compiled for, where the environment names another processor than the one at hand."""
    named: Any = config
    return f"{named.CPU_NAME} {named.CPU_FEATURES}"
