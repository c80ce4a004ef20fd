"""Sixteen numbers at once, for loops that numba compiles: LLVM's own vectors, which it maps to what the processor has.

A function here stands for an instruction or a few inside a compiled loop; addresses are plain integers. Without numba
this module cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
_FLOAT, _BYTE, _HALF, _INT, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _BYTES, _HALVES, _INTS, _LONGS = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _BYTE, _HALF, _INT, _LONG))
_FLAGS = ir.VectorType(ir.IntType(1), LANES)
_FIRST = ir.Constant(_INTS, [0] * LANES)

Writer = Callable[[Any, Any, Any, Any], Any]  # (context, builder, signature, values) -> the result's value
Code = tuple[Any, Writer]  # a signature, and what writes the instructions


class Floats(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__("float32x16")


class Ints(types.Type):
    """Sixteen int32."""

    def __init__(self) -> None:
        super().__init__("int32x16")


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, held: Any) -> None:
        super().__init__(manager, held, _FLOATS)


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, held: Any) -> None:
        super().__init__(manager, held, _INTS)


floats, ints = Floats(), Ints()
address, integer, number = types.int64, types.int32, types.float32


def instruction(function: Callable[..., Code]) -> Any:
    """A function that compiled loops may call, written by what `function` gives for the types of its arguments."""
    return intrinsic(function)


def _same(value: int) -> Any:
    """An integer in every lane."""
    return ir.Constant(_INTS, [value] * LANES)


def _read(builder: Any, place: Any, kind: Any, align: int) -> Any:
    pointer = builder.inttoptr(place, kind.as_pointer())
    return builder.load(pointer, align=align)


def _write(context: Any, builder: Any, place: Any, value: Any, align: int) -> Any:
    kind = value.type.as_pointer()
    pointer = builder.inttoptr(place, kind)
    builder.store(value, pointer, align=align)
    return context.get_dummy_value()


def _wide(builder: Any, place: Any) -> Any:
    """Sixteen bytes as int32."""
    narrow = _read(builder, place, _BYTES, 1)
    return builder.zext(narrow, _INTS)


def _all(builder: Any, value: Any, kind: Any) -> Any:
    """A value in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, _INT(0))
    return builder.shuffle_vector(one, nothing, _FIRST)


def _named(builder: Any, name: str, result: Any, *given: Any) -> Any:
    """A function of LLVM's own."""
    signature = ir.FunctionType(result, given)
    return cgutils.get_or_insert_function(builder.module, signature, name)


def _reading(kind: Any, align: int) -> Writer:
    """What writes that a value of a kind is read."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _read(builder, given[0], kind, align)

    return write


def _storing(align: int) -> Writer:
    """What writes that a value is stored."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place, value = given
        return _write(context, builder, place, value, align)

    return write


@instruction
def zeros(context: Any) -> Code:
    """Sixteen zeros."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return ir.Constant(_FLOATS, None)

    return floats(), write


@instruction
def load(context: Any, place: Any) -> Code:
    """Sixteen float32."""
    return floats(address), _reading(_FLOATS, 4)


@instruction
def store(context: Any, place: Any, values: Any) -> Code:
    """Writes sixteen float32."""
    return types.void(address, floats), _storing(4)


@instruction
def store_bfloat16(context: Any, place: Any, values: Any) -> Code:
    """Writes sixteen numbers rounded to bfloat16, ties to even."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place, values = given
        raw = builder.bitcast(values, _INTS)
        upper = builder.lshr(raw, _same(16))
        odd = builder.and_(upper, _same(1))
        almost_half = builder.add(odd, _same(0x7FFF))
        moved = builder.add(raw, almost_half)
        rounded = builder.lshr(moved, _same(16))
        halves = builder.trunc(rounded, _HALVES)
        return _write(context, builder, place, halves, 2)

    return types.void(address, floats), write


def _of_bytes(change: Callable[[Any, Any], Any]) -> Writer:
    """What writes that sixteen bytes are read as float32, `change`d as int32 on the way."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        wide = _wide(builder, given[0])
        changed = change(builder, wide)
        return builder.sitofp(changed, _FLOATS)

    return write


@instruction
def numbers(context: Any, place: Any) -> Code:
    """Sixteen bytes as float32."""
    return floats(address), _of_bytes(lambda builder, wide: wide)


@instruction
def low_numbers(context: Any, place: Any) -> Code:
    """The low four bits of sixteen bytes as float32."""

    def low(builder: Any, wide: Any) -> Any:
        return builder.and_(wide, _same(15))

    return floats(address), _of_bytes(low)


@instruction
def high_numbers(context: Any, place: Any) -> Code:
    """The high four bits of sixteen bytes as float32."""

    def high(builder: Any, wide: Any) -> Any:
        return builder.lshr(wide, _same(4))

    return floats(address), _of_bytes(high)


@instruction
def fields(context: Any, place: Any, shift: Any, mask: Any) -> Code:
    """(byte >> shift) & mask of sixteen bytes."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place, shift, mask = given
        wide = _wide(builder, place)
        shifts, masks = (_all(builder, value, _INTS) for value in (shift, mask))
        moved = builder.lshr(wide, shifts)
        return builder.and_(moved, masks)

    return ints(address, integer, integer), write


@instruction
def joined(context: Any, low: Any, high: Any, shift: Any) -> Code:
    """low | high << shift."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        low, high, shift = given
        shifts = _all(builder, shift, _INTS)
        moved = builder.shl(high, shifts)
        return builder.or_(low, moved)

    return ints(ints, ints, integer), write


@instruction
def above(context: Any, values: Any, middle: Any) -> Code:
    """values - middle, as float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, middle = given
        middles = _all(builder, middle, _INTS)
        moved = builder.sub(values, middles)
        return builder.sitofp(moved, _FLOATS)

    return floats(ints, integer), write


@instruction
def looked_up(context: Any, table: Any, indices: Any) -> Code:
    """The float32 at each index of a table."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        table, indices = given
        longs = builder.zext(indices, _LONGS)
        two = ir.Constant(_LONGS, [2] * LANES)
        steps = builder.shl(longs, two)
        places = builder.add(_all(builder, table, _LONGS), steps)
        pointers = builder.inttoptr(places, ir.VectorType(_FLOAT.as_pointer(), LANES))
        gather = _named(builder, "llvm.masked.gather.v16f32.v16p0", _FLOATS, pointers.type, _INT, _FLAGS, _FLOATS)
        everywhere = ir.Constant(_FLAGS, [1] * LANES)
        nothing = ir.Constant(_FLOATS, None)
        return builder.call(gather, [pointers, _INT(4), everywhere, nothing])

    return floats(address, ints), write


@instruction
def fma(context: Any, a: Any, b: Any, c: Any) -> Code:
    """a b + c, rounded once."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        function = _named(builder, "llvm.fma.v16f32", _FLOATS, _FLOATS, _FLOATS, _FLOATS)
        return builder.call(function, given)

    return floats(floats, floats, floats), write


@instruction
def added(context: Any, a: Any, b: Any) -> Code:
    """a + b."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        a, b = given
        return builder.fadd(a, b)

    return floats(floats, floats), write


@instruction
def scaled(context: Any, values: Any, factor: Any) -> Code:
    """values times one factor."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, factor = given
        factors = _all(builder, factor, _FLOATS)
        return builder.fmul(values, factors)

    return floats(floats, number), write


@instruction
def spread(context: Any, value: Any) -> Code:
    """A number in every lane."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _all(builder, given[0], _FLOATS)

    return floats(number), write


@instruction
def total(context: Any, values: Any) -> Code:
    """The sum of all sixteen."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        reduce = _named(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT, _FLOAT, _FLOATS)
        return builder.call(reduce, [_FLOAT(0.0), *given], fastmath=("reassoc",))

    return number(floats), write


@instruction
def float_at(context: Any, place: Any) -> Code:
    """A float32."""
    return number(address), _reading(_FLOAT, 4)


@instruction
def integer_at(context: Any, place: Any) -> Code:
    """An int64."""
    return address(address), _reading(_LONG, 8)


@instruction
def bfloat16_at(context: Any, place: Any) -> Code:
    """A bfloat16."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        half = _read(builder, given[0], _HALF, 2)
        wide = builder.zext(half, _INT)
        raw = builder.shl(wide, _INT(16))
        return builder.bitcast(raw, _FLOAT)

    return number(address), write


@instruction
def power_at(context: Any, place: Any) -> Code:
    """2^(e - 127) of a byte e; 2^-127, which float32 writes without an exponent, for 0."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        byte = _read(builder, given[0], _BYTE, 1)
        exponent = builder.zext(byte, _INT)
        raw = builder.shl(exponent, _INT(23))
        least = builder.icmp_signed("==", exponent, _INT(0))
        chosen = builder.select(least, _INT(1 << 22), raw)
        return builder.bitcast(chosen, _FLOAT)

    return number(address), write


@instruction
def byte_at(context: Any, place: Any) -> Code:
    """A byte as int32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        byte = _read(builder, given[0], _BYTE, 1)
        return builder.zext(byte, _INT)

    return integer(address), write


@instruction
def put(context: Any, place: Any, value: Any) -> Code:
    """Writes one float32."""
    return types.void(address, number), _storing(4)
