"""Arrays on the way to the page.

A message is two little-endian uint32, the bytes of the head and of the body; the head as JSON, padded with blanks to a
multiple of 4; the body, float32 arrays one after the other in the order of the head's `arrays`.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dnc_serve.client.arrays import Float32

Shape = tuple[int, ...]


def encode(facts: Mapping[str, Any], arrays: Mapping[str, Float32], full_shapes: Mapping[str, Shape]) -> bytes:
    """One message: facts for the head, and arrays with the shapes that they were thinned from."""
    described = [
        {"name": name, "shape": array.shape, "full_shape": full_shapes.get(name, array.shape)}
        for name, array in arrays.items()
    ]
    head = json.dumps({**facts, "arrays": described}).encode()
    head += b" " * (-len(head) % 4)
    body = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays.values())
    return struct.pack("<II", len(head), len(body)) + head + body
