"""Sixteen numbers at once, for loops that numba compiles: LLVM's own vectors, which it maps to what the processor has.

A function here stands for an instruction or two inside a compiled loop; addresses are plain integers. Without numba
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
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
Code = tuple[Any, Callable[..., Any]]  # a signature, and what writes the instructions


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


def _read(builder: Any, address: Any, kind: Any, align: int) -> Any:
    pointer = builder.inttoptr(address, kind.as_pointer())
    return builder.load(pointer, align=align)


def _all(builder: Any, value: Any, kind: Any) -> Any:
    """A value in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, _INT(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_INTS, [0] * LANES))


def _named(builder: Any, name: str, result: Any, *given: Any) -> Any:
    """A function of LLVM's own."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, given), name)


@intrinsic
def zeros(context: Any) -> Code:
    """Sixteen zeros."""
    return floats(), lambda context, builder, signature, given: ir.Constant(_FLOATS, None)


@intrinsic
def load(context: Any, address: Any) -> Code:
    """Sixteen float32 at an address."""
    return floats(types.int64), lambda context, builder, signature, given: _read(builder, given[0], _FLOATS, 4)


@intrinsic
def store(context: Any, address: Any, values: Any) -> Code:
    """Writes sixteen float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = builder.inttoptr(given[0], _FLOATS.as_pointer())
        builder.store(given[1], pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, floats), write


@intrinsic
def store_bfloat16(context: Any, address: Any, values: Any) -> Code:
    """Writes sixteen numbers rounded to bfloat16, ties to even."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        raw = builder.bitcast(given[1], _INTS)
        sixteen = ir.Constant(_INTS, [16] * LANES)
        odd = builder.and_(builder.lshr(raw, sixteen), ir.Constant(_INTS, [1] * LANES))
        moved = builder.add(builder.add(raw, ir.Constant(_INTS, [0x7FFF] * LANES)), odd)
        halves = ir.VectorType(ir.IntType(16), LANES)
        rounded = builder.trunc(builder.lshr(moved, sixteen), halves)
        builder.store(rounded, builder.inttoptr(given[0], halves.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, floats), write


@intrinsic
def fields(context: Any, address: Any, shift: Any, mask: Any) -> Code:
    """(byte >> shift) & mask of sixteen bytes."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        moved = builder.lshr(_wide(builder, given[0]), _all(builder, given[1], _INTS))
        return builder.and_(moved, _all(builder, given[2], _INTS))

    return ints(types.int64, types.int32, types.int32), write


def _wide(builder: Any, address: Any) -> Any:
    """Sixteen bytes as int32."""
    narrow = _read(builder, address, ir.VectorType(ir.IntType(8), LANES), 1)
    return builder.zext(narrow, _INTS)


@intrinsic
def numbers(context: Any, address: Any) -> Code:
    """Sixteen bytes as float32."""
    return floats(types.int64), lambda context, builder, signature, given: builder.sitofp(
        _wide(builder, given[0]), _FLOATS)


@intrinsic
def low_numbers(context: Any, address: Any) -> Code:
    """The low four bits of sixteen bytes as float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        low = builder.and_(_wide(builder, given[0]), ir.Constant(_INTS, [15] * LANES))
        return builder.sitofp(low, _FLOATS)

    return floats(types.int64), write


@intrinsic
def high_numbers(context: Any, address: Any) -> Code:
    """The high four bits of sixteen bytes as float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        high = builder.lshr(_wide(builder, given[0]), ir.Constant(_INTS, [4] * LANES))
        return builder.sitofp(high, _FLOATS)

    return floats(types.int64), write


@intrinsic
def added(context: Any, a: Any, b: Any) -> Code:
    """a + b."""
    return floats(floats, floats), lambda context, builder, signature, given: builder.fadd(given[0], given[1])


@intrinsic
def joined(context: Any, low: Any, high: Any, shift: Any) -> Code:
    """low | high << shift."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        moved = builder.shl(given[1], _all(builder, given[2], _INTS))
        return builder.or_(given[0], moved)

    return ints(ints, ints, types.int32), write


@intrinsic
def above(context: Any, values: Any, middle: Any) -> Code:
    """values - middle, as float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        moved = builder.sub(given[0], _all(builder, given[1], _INTS))
        return builder.sitofp(moved, _FLOATS)

    return floats(ints, types.int32), write


@intrinsic
def looked_up(context: Any, table: Any, indices: Any) -> Code:
    """The float32 at each index of the table at an address."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        wide = builder.zext(given[1], ir.VectorType(ir.IntType(64), LANES))
        bytes_each = builder.shl(wide, ir.Constant(wide.type, [2] * LANES))
        nothing = ir.Constant(wide.type, ir.Undefined)
        one = builder.insert_element(nothing, given[0], _INT(0))
        base = builder.shuffle_vector(one, nothing, ir.Constant(_INTS, [0] * LANES))
        pointers = builder.inttoptr(builder.add(base, bytes_each), ir.VectorType(_FLOAT.as_pointer(), LANES))
        flags = ir.VectorType(ir.IntType(1), LANES)
        gather = _named(builder, "llvm.masked.gather.v16f32.v16p0", _FLOATS, pointers.type, _INT, flags, _FLOATS)
        return builder.call(gather, [pointers, _INT(4), ir.Constant(flags, [1] * LANES), ir.Constant(_FLOATS, None)])

    return floats(types.int64, ints), write


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Code:
    """a b + c, rounded once."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.call(_named(builder, "llvm.fma.v16f32", _FLOATS, _FLOATS, _FLOATS, _FLOATS), given)

    return floats(floats, floats, floats), write


@intrinsic
def scaled(context: Any, values: Any, factor: Any) -> Code:
    """values times one factor."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.fmul(given[0], _all(builder, given[1], _FLOATS))

    return floats(floats, types.float32), write


@intrinsic
def spread(context: Any, value: Any) -> Code:
    """A number in every lane."""
    return floats(types.float32), lambda context, builder, signature, given: _all(builder, given[0], _FLOATS)


@intrinsic
def total(context: Any, values: Any) -> Code:
    """The sum of all sixteen."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        reduce = _named(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT, _FLOAT, _FLOATS)
        return builder.call(reduce, [_FLOAT(0.0), given[0]], fastmath=("reassoc",))

    return types.float32(floats), write


@intrinsic
def float_at(context: Any, address: Any) -> Code:
    """The float32 at an address."""
    return types.float32(types.int64), lambda context, builder, signature, given: _read(builder, given[0], _FLOAT, 4)


@intrinsic
def bfloat16_at(context: Any, address: Any) -> Code:
    """The bfloat16 at an address."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        half = _read(builder, given[0], ir.IntType(16), 2)
        raw = builder.shl(builder.zext(half, _INT), _INT(16))
        return builder.bitcast(raw, _FLOAT)

    return types.float32(types.int64), write


@intrinsic
def power_at(context: Any, address: Any) -> Code:
    """2^(e - 127) of the byte e at an address; 2^-127, which float32 writes without an exponent, for 0."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        exponent = builder.zext(_read(builder, given[0], ir.IntType(8), 1), _INT)
        raw = builder.shl(exponent, _INT(23))
        least = builder.icmp_signed("==", exponent, _INT(0))
        return builder.bitcast(builder.select(least, _INT(1 << 22), raw), _FLOAT)

    return types.float32(types.int64), write


@intrinsic
def byte_at(context: Any, address: Any) -> Code:
    """The byte at an address."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.zext(_read(builder, given[0], ir.IntType(8), 1), _INT)

    return types.int32(types.int64), write


@intrinsic
def integer_at(context: Any, address: Any) -> Code:
    """The int64 at an address."""
    return types.int64(types.int64), lambda context, builder, signature, given: _read(
        builder, given[0], ir.IntType(64), 8)


@intrinsic
def put(context: Any, address: Any, value: Any) -> Code:
    """Writes one float32."""

    def write(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[1], builder.inttoptr(given[0], _FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), write
