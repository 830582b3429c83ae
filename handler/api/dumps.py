"""Dumps on the wire: in parts that pass any message limit, or in one message at TorchServe's endpoint."""

from collections.abc import Iterator, Mapping

import numpy as np

from dnc_serve.handler.api.arrays import encode_array, wire_type
from dnc_serve.handler.api.operations import PART_BYTES
from dnc_serve.handler.api.views import Shown
from dnc_serve.handler.engine.requests import StateView
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb


def dump_parts(message: pb.Dump, seen: StateView, arrays: Mapping[str, Shown]) -> Iterator[pb.DumpPart]:
    """A dump's parts; one without a name if there is no array."""
    remaining = sum(shown.values.nbytes for shown in arrays.values())
    for name, (values, full_shape) in arrays.items():
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        for offset in range(0, len(data), PART_BYTES):
            piece = data[offset : offset + PART_BYTES].tobytes()
            remaining -= len(piece)
            yield pb.DumpPart(
                session_id=message.session_id,
                position=seen.head.position,
                experience=seen.head.experience,
                name=name,
                shape=values.shape,
                data_type=wire_type(values),
                full_shape=full_shape if message.HasField("max_cells") else (),
                offset=offset,
                data=piece,
                last=not remaining,
                request_id=message.request_id,
            )
    if not arrays:
        yield pb.DumpPart(
            session_id=message.session_id,
            position=seen.head.position,
            experience=seen.head.experience,
            last=True,
            request_id=message.request_id,
        )


def whole_dump(message: pb.Dump, seen: StateView, arrays: Mapping[str, Shown]) -> pb.WholeDump:
    """A dump in one message."""
    dump = pb.WholeDump(session_id=message.session_id, position=seen.head.position, experience=seen.head.experience)
    for name, (values, full_shape) in arrays.items():
        if message.HasField("max_cells"):
            dump.thinned[name].CopyFrom(pb.WatchedArray(array=encode_array(values), full_shape=full_shape))
        else:
            dump.arrays[name].CopyFrom(encode_array(values))
    return dump
