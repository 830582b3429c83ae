"""Sixteen numbers at once, and pointers to numbers: what the row kernel is written in.

Numba would make vector code of plain loops too, but what it chooses depends on the processor and on what lies where in
memory, and sums come out in another order. Written in lanes, each operation rounds as it stands here: products and sums
are fused by `fma` alone, and sums over lanes go by one tree. So the bits are the same on every processor, however many
lanes its registers hold, and however many rows are stepped together.

All functions but `at` and those on memory take numbers as well as lanes, and either precision: float32 is served, and
float64 is for tests against the paper's maths.
"""

import operator
import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from dnc_serve.model.kernel.weights import LANES as LANES

INLINED: dict[str, Any] = {
    "error_model": "numpy", "boundscheck": False, "forceinline": True,
    "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
}  # fmt: skip
# A helper of compiled code. All sizes are constants, once it is inlined into a tick.
inlined = njit(**INLINED)

INT32 = ir.IntType(32)


class LanesType(types.Type):
    """Sixteen numbers of a type."""

    def __init__(self, number: types.Type) -> None:
        self.number = number
        super().__init__(name=f"lanes of {number}")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        number = manager.lookup(lanes.number).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, LANES))


# Numbers and lanes.


@intrinsic
def like(context, x, number):
    """A number as x is: in its precision, in all of its lanes. A bare literal would make float64 of all it meets."""
    wanted = x.number if isinstance(x, LanesType) else x

    def generate(context, builder, signature, args):
        cast = context.cast(builder, args[1], number, wanted)
        return spread_ir(builder, cast) if isinstance(x, LanesType) else cast

    return x(x, number), generate


@intrinsic
def spread(context, x):
    """A number in all lanes."""
    return LanesType(x)(x), lambda context, builder, signature, args: spread_ir(builder, args[0])


def spread_ir(builder: Any, x: Any) -> Any:
    lanes = ir.VectorType(x.type, LANES)
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), x, INT32(0))
    return builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), places_ir([0] * LANES))


def places_ir(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(INT32, len(places)), places)


def _between_lanes(operation: str, *arguments: int) -> Any:
    """An operation of LLVM's builder on two lanes, and how Python's operator finds it."""

    @intrinsic
    def apply(context, x, y):
        return x(x, y), lambda context, builder, signature, args: getattr(builder, operation)(*args)

    def chosen(x, y):
        if isinstance(x, LanesType) and isinstance(y, LanesType):
            return lambda x, y: apply(x, y)
        return None

    return chosen


for _operator, _operation in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    overload(_operator, jit_options=INLINED)(_between_lanes(_operation))


def _call(builder: Any, name: str, *args: Any) -> Any:
    """A function of LLVM's for the type of its arguments."""
    kind = args[0].type
    number = kind.element if isinstance(kind, ir.VectorType) else kind
    width = "f32" if isinstance(number, ir.FloatType) else "f64"
    suffix = f"v{LANES}{width}" if isinstance(kind, ir.VectorType) else width
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [arg.type for arg in args]), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, args)


@intrinsic
def fma(context, x, y, z):
    """x y + z, rounded once."""
    return x(x, y, z), lambda context, builder, signature, args: _call(builder, "fma", *args)


@intrinsic
def root(context, x):
    """The square root."""
    return x(x), lambda context, builder, signature, args: _call(builder, "sqrt", *args)


@intrinsic
def at_least(context, x, least):
    """The larger of both; what is not a number stays so."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return x(x, x), generate


@intrinsic
def at_most(context, x, most):
    """The smaller of both; what is not a number stays so."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), args[1], args[0])

    return x(x, x), generate


def integers_ir(kind: Any) -> Any:
    """Of the same width, and as many."""
    if isinstance(kind, ir.VectorType):
        return ir.VectorType(integers_ir(kind.element), kind.count)
    return ir.IntType(32 if isinstance(kind, ir.FloatType) else 64)


def all_ir(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


@intrinsic
def power_of_two(context, shifted):
    """2^n, of an n that has come to lie in the low bits of a float, as 1.5 * 2^23 + n has it (2^52 in float64)."""

    def generate(context, builder, signature, args):
        kind = integers_ir(args[0].type)
        bias, exponent = (127, 23) if shifted in (types.float32, LanesType(types.float32)) else (1023, 52)
        biased = builder.add(builder.bitcast(args[0], kind), all_ir(kind, bias))
        return builder.bitcast(builder.shl(biased, all_ir(kind, exponent)), args[0].type)

    return shifted(shifted), generate


# Over lanes.


@intrinsic
def without(context, x, lane):
    """x with zero in one lane."""

    def generate(context, builder, signature, args):
        return builder.insert_element(args[0], ir.Constant(args[0].type.element, 0), args[1])

    return x(x, types.intp), generate


@intrinsic
def total(context, x):
    """Σ x over lanes: halves are added until one number is left."""

    def generate(context, builder, signature, args):
        (rest,), half = args, LANES // 2
        while half:
            low, high = places_ir(list(range(half))), places_ir(list(range(half, 2 * half)))
            rest = builder.fadd(builder.shuffle_vector(rest, rest, low), builder.shuffle_vector(rest, rest, high))
            half //= 2
        return builder.extract_element(rest, INT32(0))

    return x.number(x), generate


@intrinsic
def largest(context, x):
    """max x over lanes."""

    def generate(context, builder, signature, args):
        (rest,), half = args, LANES // 2
        while half:
            low = builder.shuffle_vector(rest, rest, places_ir(list(range(half))))
            high = builder.shuffle_vector(rest, rest, places_ir(list(range(half, 2 * half))))
            rest = builder.select(builder.fcmp_ordered(">", low, high), low, high)
            half //= 2
        return builder.extract_element(rest, INT32(0))

    return x.number(x), generate


FLUSH = 0x8040  # in x86's control register: results and operands too small for a normal number are zero


@intrinsic
def flush_denormals(context, on):
    """Whether numbers below 1e-38 are zero from here on in this thread; returns whether they were before.

    Weightings that fade would else cost a hundred times as much, and bits would depend on the thread. Elsewhere than on
    x86 it does nothing.
    """

    def generate(context, builder, signature, args):
        if platform.machine() != "x86_64":
            return args[0]
        place = builder.alloca(INT32)
        access = ir.FunctionType(ir.VoidType(), [place.type])
        read = cgutils.get_or_insert_function(builder.module, access, "llvm.x86.sse.stmxcsr")
        write = cgutils.get_or_insert_function(builder.module, access, "llvm.x86.sse.ldmxcsr")
        builder.call(read, [place])
        before = builder.load(place)
        flushing = builder.or_(before, INT32(FLUSH))
        builder.store(builder.select(args[0], flushing, builder.and_(before, INT32(~FLUSH))), place)
        builder.call(write, [place])
        return builder.icmp_unsigned("==", before, flushing)

    return types.boolean(types.boolean), generate
