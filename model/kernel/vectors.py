"""Vectors and matrices of one row: copies, sums, softmax, and products with weights.

A matrix's last index runs fastest. `size` counts numbers; what lies beyond is neither read nor changed.
"""

import math

from dnc_serve.model.kernel.arithmetic import exp
from dnc_serve.model.kernel.lanes import LANES, at_least, fma, inlined, largest, like, spread, total
from dnc_serve.model.kernel.pointers import at, load, load_of, part, put, store, totals
from dnc_serve.model.kernel.weights import PANEL


@inlined
def copy(source, target, size):
    """target = source"""
    for i in range(0, size, LANES):
        put(target, i, size, part(source, i, size))


@inlined
def lanes_of_dot(x, y, size):
    """x y, added up until sixteen lanes are left."""
    sums = spread(like(x[0], 0.0))
    for i in range(0, size, LANES):
        sums = fma(part(x, i, size), part(y, i, size), sums)
    return sums


@inlined
def dot(x, y, size):
    """Σ x y"""
    return total(lanes_of_dot(x, y, size))


@inlined
def sum_of(x, size):
    """Σ x"""
    sums = spread(like(x[0], 0.0))
    for i in range(0, size, LANES):
        sums = sums + part(x, i, size)
    return total(sums)


@inlined
def dots_with_rows(matrix, x, y, partial, rows, columns, squares):
    """y[n] = Σ_j M[n, j] x[j] for all rows of M, or Σ_j M[n, j]^2 if `squares`; `partial` is scratch [16, 16]."""
    for first in range(0, rows // LANES * LANES, LANES):
        for n in range(LANES):
            row = at(matrix, (first + n) * columns)
            store(partial, n * LANES, lanes_of_dot(row, row if squares else x, columns))
        store(y, first, totals(partial))
    for n in range(rows // LANES * LANES, rows):
        row = at(matrix, n * columns)
        y[n] = dot(row, row if squares else x, columns)


@inlined
def softmax(x, size):
    """x = e^x / Σ e^x, in place."""
    most = load_of(x, 0, size, -math.inf)
    for i in range(LANES, size, LANES):
        most = at_least(most, load_of(x, i, size, -math.inf))
    shift = spread(largest(most))
    sums = spread(like(x[0], 0.0))
    for i in range(0, size, LANES):
        put(x, i, size, exp(part(x, i, size) - shift))
        sums = sums + part(x, i, size)
    scale = spread(like(x[0], 1.0) / total(sums))
    for i in range(0, size, LANES):
        put(x, i, size, part(x, i, size) * scale)


@inlined
def weighted_rows(weights, matrix, y, rows, columns):
    """y[j] = Σ_n w[n] M[n, j]"""
    for j in range(0, columns, LANES):
        sums = spread(like(weights[0], 0.0))
        for n in range(rows):
            sums = fma(spread(weights[n]), part(at(matrix, n * columns), j, columns), sums)
        put(y, j, columns, sums)


# Weights W [inputs, columns], with the bias below them, lie in panels of 64 columns, and of 16 at the end; each panel
# is read from top to bottom, by as many rows at once as are at hand. Each number is added up in the same order.


@inlined
def product(weights, x, y, inputs, columns, rows, stride, wide):
    """y = b + x W for each of `rows` rows, one or four, which lie `stride` numbers apart.

    `wide`: the processor has registers for eight sums of sixteen lanes.
    """
    in_panels = columns // PANEL * PANEL
    for j in range(0, in_panels, PANEL):
        panel = at(weights, j * (inputs + 1))
        if rows == 1:
            _four_lanes_of_a_row(panel, x, at(y, j), inputs)
        elif wide:
            for lane in range(0, PANEL, 2 * LANES):
                _two_lanes_of_four_rows(at(panel, lane), x, at(y, j + lane), inputs, PANEL, stride)
        else:
            for lane in range(0, PANEL, LANES):
                _lanes_of_four_rows(at(panel, lane), x, at(y, j + lane), inputs, PANEL, stride)
    for j in range(in_panels, columns, LANES):
        panel = at(weights, j * (inputs + 1))
        if rows == 1:
            _lanes_of_a_row(panel, x, at(y, j), inputs)
        else:
            _lanes_of_four_rows(panel, x, at(y, j), inputs, LANES, stride)


@inlined
def _lanes_of_a_row(panel, x, y, inputs):
    sums = load(panel, inputs * LANES)
    for i in range(inputs):
        sums = fma(spread(x[i]), load(panel, i * LANES), sums)
    store(y, 0, sums)


@inlined
def _lanes_of_four_rows(panel, x, y, inputs, width, stride):
    a = b = c = d = load(panel, inputs * width)
    for i in range(inputs):
        w = load(panel, i * width)
        a, b = fma(spread(x[i]), w, a), fma(spread(x[stride + i]), w, b)
        c, d = fma(spread(x[2 * stride + i]), w, c), fma(spread(x[3 * stride + i]), w, d)
    store(y, 0, a)
    store(y, stride, b)
    store(y, 2 * stride, c)
    store(y, 3 * stride, d)


@inlined
def _four_lanes_of_a_row(panel, x, y, inputs):
    bias = inputs * PANEL
    a, b = load(panel, bias), load(panel, bias + LANES)
    c, d = load(panel, bias + 2 * LANES), load(panel, bias + 3 * LANES)
    for i in range(inputs):
        xi, w = spread(x[i]), at(panel, i * PANEL)
        a, b = fma(xi, load(w, 0), a), fma(xi, load(w, LANES), b)
        c, d = fma(xi, load(w, 2 * LANES), c), fma(xi, load(w, 3 * LANES), d)
    store(y, 0, a)
    store(y, LANES, b)
    store(y, 2 * LANES, c)
    store(y, 3 * LANES, d)


@inlined
def _two_lanes_of_four_rows(panel, x, y, inputs, width, stride):
    a0 = b0 = c0 = d0 = load(panel, inputs * width)
    a1 = b1 = c1 = d1 = load(panel, inputs * width + LANES)
    for i in range(inputs):
        w0, w1 = load(panel, i * width), load(panel, i * width + LANES)
        xa, xb = spread(x[i]), spread(x[stride + i])
        a0, a1, b0, b1 = fma(xa, w0, a0), fma(xa, w1, a1), fma(xb, w0, b0), fma(xb, w1, b1)
        xc, xd = spread(x[2 * stride + i]), spread(x[3 * stride + i])
        c0, c1, d0, d1 = fma(xc, w0, c0), fma(xc, w1, c1), fma(xd, w0, d0), fma(xd, w1, d1)
    store(y, 0, a0)
    store(y, LANES, a1)
    store(y, stride, b0)
    store(y, stride + LANES, b1)
    store(y, 2 * stride, c0)
    store(y, 2 * stride + LANES, c1)
    store(y, 3 * stride, d0)
    store(y, 3 * stride + LANES, d1)
