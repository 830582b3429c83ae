"""Numbers in memory: pointers, and lanes that are read from where they point to and written there.

A vector need not have a multiple of sixteen numbers: `part` and `put` take its size, and neither read nor change what
lies beyond.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dnc_serve.model.kernel.lanes import INT32, LANES, LanesType, inlined, like, places_ir, spread, spread_ir


@intrinsic
def at(context, pointer, offset):
    """The pointer to the number `offset` numbers further on."""
    return pointer(pointer, types.intp), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


def _load(builder: Any, lanes: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(place, lanes.as_pointer()), align=4)


@intrinsic
def load(context, pointer, offset):
    """Sixteen numbers from memory."""

    def generate(context, builder, signature, args):
        return _load(builder, context.get_value_type(signature.return_type), builder.gep(args[0], [args[1]]))

    return LanesType(pointer.dtype)(pointer, types.intp), generate


@intrinsic
def store(context, pointer, offset, x):
    """Sixteen numbers to memory."""

    def generate(context, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), args[2].type.as_pointer())
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, x), generate


def _masked(context: Any, builder: Any, name: str, result: Any, count: Any, *args: Any) -> Any:
    """LLVM's load or store of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(count.type, LANES), list(range(LANES)))
    mask = builder.icmp_signed("<", numbers, spread_ir(builder, count))
    lanes = args[-1].type
    width = {ir.FloatType: "f32", ir.DoubleType: "f64"}.get(
        type(lanes.element), f"i{getattr(lanes.element, 'width', 0)}"
    )
    place = next(arg for arg in args if isinstance(arg.type, ir.PointerType))
    given = {"load": (place, INT32(4), mask, args[-1]), "store": (args[-1], place, INT32(4), mask)}[name]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, [arg.type for arg in given]),
        f"llvm.masked.{name}.v{LANES}{width}.p0",
    )
    return builder.call(function, given)


@intrinsic
def _load_first(context, pointer, offset, count, other):
    def generate(context, builder, signature, args):
        lanes = context.get_value_type(signature.return_type)
        place = builder.bitcast(builder.gep(args[0], [args[1]]), lanes.as_pointer())
        return _masked(context, builder, "load", lanes, args[2], place, args[3])

    return LanesType(pointer.dtype)(pointer, types.intp, types.intp, other), generate


@intrinsic
def _store_first(context, pointer, offset, count, x):
    def generate(context, builder, signature, args):
        place = builder.bitcast(builder.gep(args[0], [args[1]]), args[3].type.as_pointer())
        _masked(context, builder, "store", ir.VoidType(), args[2], place, args[3])
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.intp, x), generate


@inlined
def load_of(pointer, offset, size, other):
    """Sixteen numbers of a vector of `size`; `other` in lanes beyond its end."""
    if offset + LANES <= size:
        return load(pointer, offset)
    return _load_first(pointer, offset, size - offset, spread(like(pointer[0], other)))


@inlined
def part(pointer, offset, size):
    """Sixteen numbers of a vector of `size`; zeros in lanes beyond its end."""
    return load_of(pointer, offset, size, 0.0)


@inlined
def put(pointer, offset, size, x):
    """Sixteen numbers into a vector of `size`; lanes beyond its end are dropped."""
    if offset + LANES <= size:
        store(pointer, offset, x)
    else:
        _store_first(pointer, offset, size - offset, x)


@intrinsic
def totals(context, rows):
    """Σ over each of sixteen rows of lanes, which lie one behind the other; each by the same tree as `total`."""

    def generate(context, builder, signature, args):
        lanes = context.get_value_type(signature.return_type)
        left = [_load(builder, lanes, builder.gep(args[0], [INT32(LANES * row)])) for row in range(LANES)]
        half = LANES // 2
        while half:  # the rows of a pair share lanes: each row's take `half` of them, then half as many
            low = [start + place for start in range(0, 2 * LANES, 2 * half) for place in range(half)]
            high = [place + half for place in low]
            left = [
                builder.fadd(
                    builder.shuffle_vector(x, y, places_ir(low)), builder.shuffle_vector(x, y, places_ir(high))
                )
                for x, y in zip(left[::2], left[1::2], strict=True)
            ]
            half //= 2
        return left[0]

    return LanesType(rows.dtype)(rows), generate
