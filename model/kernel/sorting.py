"""The order of slots for allocation: by descending key, stably."""

from numba import types
from numba.extending import intrinsic, overload

from dnc_serve.model.kernel.lanes import INLINED, LANES, LanesType, all_ir, inlined, integers_ir, spread_ir
from dnc_serve.model.kernel.pointers import at, load, part, put

# Up to so many slots each finds its place by comparison with all others; beyond, a radix sort takes less.
RANKED_SLOTS = 512
DIGITS = 256


def integers_needed(slots: int) -> int:
    """How many integers of scratch, as wide as the keys."""
    return 3 * slots + 4 * LANES + DIGITS + 1


@inlined
def descending_order(keys, integers, slots):
    """The slots [N] by descending key, those with equal keys by ascending index, somewhere in `integers`."""
    padded = (slots + LANES - 1) // LANES * LANES
    order, ordered = integers, at(integers, padded)
    for n in range(0, slots, LANES):
        put(ordered, n, padded, as_integers(part(keys, n, slots)))
    if slots <= RANKED_SLOTS:
        for group in range(0, slots, LANES):
            places = ranks(ordered, group, slots)
            put(at(integers, 2 * padded), group, padded, places)
        for n in range(slots):
            order[integers[2 * padded + n]] = n
    else:
        radix_sort(ordered, order, at(integers, 2 * padded), slots)
    return order


@inlined
def ranks(keys, group, slots):
    """Of sixteen slots from `group` on, how many come before each."""
    here = load(keys, group)
    places = none_of(here)
    for n in range(group):  # they come first among equals
        places = count(places, keys[n], here, True)
    for n in range(group, min(group + LANES, slots)):
        places = count_neighbour(places, keys[n], here, n - group)
    for n in range(group + LANES, slots):
        places = count(places, keys[n], here, False)
    return places


@inlined
def radix_sort(keys, order, scratch, slots):
    """By the bits of the keys, eight at a time from the lowest; each pass is stable."""
    spare, counts = scratch, at(scratch, slots)
    for n in range(slots):
        order[n] = n
    source, target = order, spare
    for shift in range(0, width_of(keys[0]), 8):
        for digit in range(DIGITS + 1):
            counts[digit] = 0
        for n in range(slots):
            counts[_digit(keys[n], shift) + 1] += 1
        for digit in range(DIGITS):
            counts[digit + 1] += counts[digit]
        for n in range(slots):
            digit = _digit(keys[source[n]], shift)
            target[counts[digit]] = source[n]
            counts[digit] += 1
        source, target = target, source  # an even number of passes ends in `order`


@inlined
def _digit(key, shift):
    """Larger for smaller keys."""
    flipped = ~key if shift + 8 < width_of(key) else key ^ ((1 << (width_of(key) - 1)) - 1)
    return (flipped >> shift) & (DIGITS - 1)


def width_of(key):
    """Bits of an integer."""
    raise NotImplementedError("for compiled code")


@overload(width_of, jit_options=INLINED)
def _width_of(key):
    bits = key.bitwidth
    return lambda key: bits


@intrinsic
def as_integers(context, x):
    """Integers of the same order, also among negative numbers; of what is not a number, some."""
    integers = LanesType(types.int32 if x.number == types.float32 else types.int64)

    def generate(context, builder, signature, args):
        kind = integers_ir(args[0].type)
        bits = builder.bitcast(args[0], kind)
        sign = builder.ashr(bits, all_ir(kind, kind.element.width - 1))
        return builder.xor(bits, builder.lshr(sign, all_ir(kind, 1)))

    return integers(x), generate


@intrinsic
def none_of(context, x):
    """Zeros."""
    return x(x), lambda context, builder, signature, args: all_ir(args[0].type, 0)


@intrinsic
def count(context, places, key, others, or_equal):
    """One more for each of the others that `key` is larger than, or as large as."""

    def generate(context, builder, signature, args):
        key = spread_ir(builder, args[1])
        larger, equal = builder.icmp_signed(">", key, args[2]), builder.icmp_signed(">=", key, args[2])
        before = builder.select(args[3], equal, larger)
        return builder.add(args[0], builder.zext(before, args[0].type))

    return places(places, key, others, types.boolean), generate


@intrinsic
def count_neighbour(context, places, key, others, index):
    """The same, where the key is that of lane `index`: it comes before the lanes behind it, if they are equal."""

    def generate(context, builder, signature, args):
        key, kind = spread_ir(builder, args[1]), args[0].type
        index = spread_ir(builder, builder.trunc(args[3], kind.element) if kind.element.width < 64 else args[3])
        numbers = type(all_ir(kind, 0))(kind, list(range(LANES)))
        behind = builder.icmp_signed(">", numbers, index)
        before = builder.or_(
            builder.icmp_signed(">", key, args[2]), builder.and_(behind, builder.icmp_signed("==", key, args[2]))
        )
        return builder.add(args[0], builder.zext(before, kind))

    return places(places, key, others, types.intp), generate
