"""Arrays on the way to the page."""

import json
import struct

import numpy as np

from dnc_serve.client.watch.wire import encode, shaped


def test_a_message_holds_head_and_arrays() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([[7]])}
    message = encode({"position": 5}, arrays, {"a": (20, 30)})
    head_bytes, body_bytes = struct.unpack_from("<II", message)
    assert head_bytes % 4 == 0
    assert len(message) == 8 + head_bytes + body_bytes
    head = json.loads(message[8 : 8 + head_bytes])
    assert head == {
        "position": 5,
        "arrays": [
            {"name": "a", "shape": [2, 3], "full_shape": [20, 30]},
            {"name": "b", "shape": [1, 1], "full_shape": [1, 1]},
        ],
    }
    body = np.frombuffer(message[8 + head_bytes :], "<f4")
    assert body.tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_a_dump_gets_its_shapes_back() -> None:
    config = {"nr_cells": 4, "cell_size": 3, "read_heads": 2, "write_heads": 1}
    sizes = {"memory": 12, "link_matrix": 16, "precedence": 4, "read_weights": 8, "write_weights": 4, "usage_vector": 4}
    dump = {name: np.arange(2 * size, dtype=np.float32).reshape(2, size) for name, size in sizes.items()}
    shapes = {name: array.shape for name, array in shaped(dump, config).items()}
    assert shapes == {
        "memory": (2, 4, 3),
        "link_matrix": (2, 1, 4, 4),
        "precedence": (2, 1, 4),
        "read_weights": (2, 2, 4),
        "write_weights": (2, 1, 4),
        "usage_vector": (2, 4),
    }
