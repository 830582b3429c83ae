"""Arrays on the way to the page."""

import json
import struct

import numpy as np

from dnc_serve.client.watch.wire import encode


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
