import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_INT16: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_SLOT: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_STORE: _ClassVar[Tier]

class ResetScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESET_SCOPE_UNSPECIFIED: _ClassVar[ResetScope]
    RESET_SCOPE_EXPERIENCE: _ClassVar[ResetScope]
    RESET_SCOPE_ALL: _ClassVar[ResetScope]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_BOOL: DataType
TIER_UNSPECIFIED: Tier
TIER_SLOT: Tier
TIER_HOST: Tier
TIER_STORE: Tier
RESET_SCOPE_UNSPECIFIED: ResetScope
RESET_SCOPE_EXPERIENCE: ResetScope
RESET_SCOPE_ALL: ResetScope

class Array(_message.Message):
    __slots__ = ("shape", "data", "dtype")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    dtype: DataType
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., dtype: _Optional[_Union[DataType, str]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "durable_position", "experience", "model_digest", "tier", "state_bytes", "created", "last_used", "earliest_position", "replayed_elsewhere", "fingerprint", "model", "model_version")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_POSITION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    durable_position: int
    experience: int
    model_digest: str
    tier: Tier
    state_bytes: int
    created: _timestamp_pb2.Timestamp
    last_used: _timestamp_pb2.Timestamp
    earliest_position: int
    replayed_elsewhere: bool
    fingerprint: str
    model: str
    model_version: str
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., durable_position: _Optional[int] = ..., experience: _Optional[int] = ..., model_digest: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ..., state_bytes: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., earliest_position: _Optional[int] = ..., replayed_elsewhere: bool = ..., fingerprint: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("session_id", "allow_existing", "model", "model_version")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOW_EXISTING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    allow_existing: bool
    model: str
    model_version: str
    def __init__(self, session_id: _Optional[str] = ..., allow_existing: bool = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("session", "created")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    created: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., created: bool = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "prefix", "model")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    prefix: str
    model: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., prefix: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: bool
    def __init__(self, deleted: bool = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "inputs", "reset_experience", "debug", "request_id", "traceparent", "experience", "writer_id", "pipelined")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    RESET_EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    WRITER_ID_FIELD_NUMBER: _ClassVar[int]
    PIPELINED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    inputs: Array
    reset_experience: bool
    debug: bool
    request_id: int
    traceparent: str
    experience: int
    writer_id: int
    pipelined: bool
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., inputs: _Optional[_Union[Array, _Mapping]] = ..., reset_experience: bool = ..., debug: bool = ..., request_id: _Optional[int] = ..., traceparent: _Optional[str] = ..., experience: _Optional[int] = ..., writer_id: _Optional[int] = ..., pipelined: bool = ...) -> None: ...

class ChunkResult(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "durable_position", "experience", "outputs", "replayed", "request_id", "debug")
    class DebugEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    durable_position: int
    experience: int
    outputs: Array
    replayed: bool
    request_id: int
    debug: _containers.MessageMap[str, Array]
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., durable_position: _Optional[int] = ..., experience: _Optional[int] = ..., outputs: _Optional[_Union[Array, _Mapping]] = ..., replayed: bool = ..., request_id: _Optional[int] = ..., debug: _Optional[_Mapping[str, Array]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: ChunkResult
    def __init__(self, result: _Optional[_Union[ChunkResult, _Mapping]] = ...) -> None: ...

class StepWithStateRequest(_message.Message):
    __slots__ = ("chunk", "state", "model")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    state: bytes
    model: str
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., state: _Optional[bytes] = ..., model: _Optional[str] = ...) -> None: ...

class StepWithStateResponse(_message.Message):
    __slots__ = ("result", "state")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    result: ChunkResult
    state: bytes
    def __init__(self, result: _Optional[_Union[ChunkResult, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "experience", "scope", "request_id", "writer_id", "pipelined")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WRITER_ID_FIELD_NUMBER: _ClassVar[int]
    PIPELINED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    experience: int
    scope: ResetScope
    request_id: int
    writer_id: int
    pipelined: bool
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., experience: _Optional[int] = ..., scope: _Optional[_Union[ResetScope, str]] = ..., request_id: _Optional[int] = ..., writer_id: _Optional[int] = ..., pipelined: bool = ...) -> None: ...

class ResetResult(_message.Message):
    __slots__ = ("session", "changed", "request_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session: Session
    changed: bool
    request_id: int
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., changed: bool = ..., request_id: _Optional[int] = ...) -> None: ...

class ResetSessionRequest(_message.Message):
    __slots__ = ("reset",)
    RESET_FIELD_NUMBER: _ClassVar[int]
    reset: Reset
    def __init__(self, reset: _Optional[_Union[Reset, _Mapping]] = ...) -> None: ...

class ResetSessionResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: ResetResult
    def __init__(self, result: _Optional[_Union[ResetResult, _Mapping]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id", "fork_session_id", "incarnation", "position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FORK_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    fork_session_id: str
    incarnation: int
    position: int
    def __init__(self, session_id: _Optional[str] = ..., fork_session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ("session", "created")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    created: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., created: bool = ...) -> None: ...

class Dump(_message.Message):
    __slots__ = ("session_id", "names", "position", "request_id", "max_cells")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_CELLS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    position: int
    request_id: int
    max_cells: int
    def __init__(self, session_id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., position: _Optional[int] = ..., request_id: _Optional[int] = ..., max_cells: _Optional[int] = ...) -> None: ...

class DumpPart(_message.Message):
    __slots__ = ("session_id", "position", "experience", "name", "shape", "offset", "data", "last", "request_id", "full_shape", "data_type")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FULL_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    experience: int
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    data: bytes
    last: bool
    request_id: int
    full_shape: _containers.RepeatedScalarFieldContainer[int]
    data_type: DataType
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., experience: _Optional[int] = ..., name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., last: bool = ..., request_id: _Optional[int] = ..., full_shape: _Optional[_Iterable[int]] = ..., data_type: _Optional[_Union[DataType, str]] = ...) -> None: ...

class DumpMemoryRequest(_message.Message):
    __slots__ = ("dump",)
    DUMP_FIELD_NUMBER: _ClassVar[int]
    dump: Dump
    def __init__(self, dump: _Optional[_Union[Dump, _Mapping]] = ...) -> None: ...

class DumpMemoryResponse(_message.Message):
    __slots__ = ("part",)
    PART_FIELD_NUMBER: _ClassVar[int]
    part: DumpPart
    def __init__(self, part: _Optional[_Union[DumpPart, _Mapping]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("chunk", "reset", "dump", "batch")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    DUMP_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    reset: Reset
    dump: Dump
    batch: RequestBatch
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., dump: _Optional[_Union[Dump, _Mapping]] = ..., batch: _Optional[_Union[RequestBatch, _Mapping]] = ...) -> None: ...

class RequestBatch(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[StreamRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[StreamRequest, _Mapping]]] = ...) -> None: ...

class ResponseBatch(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[StreamResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[StreamResponse, _Mapping]]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("chunk", "reset", "dump", "error", "go_away", "batch")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    DUMP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkResult
    reset: ResetResult
    dump: DumpPart
    error: StreamError
    go_away: GoAway
    batch: ResponseBatch
    def __init__(self, chunk: _Optional[_Union[ChunkResult, _Mapping]] = ..., reset: _Optional[_Union[ResetResult, _Mapping]] = ..., dump: _Optional[_Union[DumpPart, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., batch: _Optional[_Union[ResponseBatch, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("session_id", "request_id", "status")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: int
    status: _status_pb2.Status
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("reason", "retry_after_seconds")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    retry_after_seconds: float
    def __init__(self, reason: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class WatchMemoryRequest(_message.Message):
    __slots__ = ("session_id", "names", "max_frames_per_second", "max_cells")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MAX_CELLS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    max_frames_per_second: float
    max_cells: int
    def __init__(self, session_id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., max_frames_per_second: _Optional[float] = ..., max_cells: _Optional[int] = ...) -> None: ...

class WatchMemoryResponse(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "experience", "tier", "arrays", "skipped_frames", "at")
    class ArraysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: WatchedArray
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[WatchedArray, _Mapping]] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    experience: int
    tier: Tier
    arrays: _containers.MessageMap[str, WatchedArray]
    skipped_frames: int
    at: _timestamp_pb2.Timestamp
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., experience: _Optional[int] = ..., tier: _Optional[_Union[Tier, str]] = ..., arrays: _Optional[_Mapping[str, WatchedArray]] = ..., skipped_frames: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchedArray(_message.Message):
    __slots__ = ("array", "full_shape")
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    FULL_SHAPE_FIELD_NUMBER: _ClassVar[int]
    array: Array
    full_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, array: _Optional[_Union[Array, _Mapping]] = ..., full_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ReplaySessionRequest(_message.Message):
    __slots__ = ("session_id", "after", "until", "names", "max_cells", "every")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_CELLS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    after: int
    until: int
    names: _containers.RepeatedScalarFieldContainer[str]
    max_cells: int
    every: int
    def __init__(self, session_id: _Optional[str] = ..., after: _Optional[int] = ..., until: _Optional[int] = ..., names: _Optional[_Iterable[str]] = ..., max_cells: _Optional[int] = ..., every: _Optional[int] = ...) -> None: ...

class ReplaySessionResponse(_message.Message):
    __slots__ = ("position", "experience", "inputs", "outputs", "arrays")
    class ArraysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: WatchedArray
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[WatchedArray, _Mapping]] = ...) -> None: ...
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    position: int
    experience: int
    inputs: Array
    outputs: Array
    arrays: _containers.MessageMap[str, WatchedArray]
    def __init__(self, position: _Optional[int] = ..., experience: _Optional[int] = ..., inputs: _Optional[_Union[Array, _Mapping]] = ..., outputs: _Optional[_Union[Array, _Mapping]] = ..., arrays: _Optional[_Mapping[str, WatchedArray]] = ...) -> None: ...

class ExportSessionRequest(_message.Message):
    __slots__ = ("session_id", "incarnation", "position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class ExportSessionResponse(_message.Message):
    __slots__ = ("total_bytes", "data")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    data: bytes
    def __init__(self, total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportSessionRequest(_message.Message):
    __slots__ = ("session_id", "total_bytes", "data")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    total_bytes: int
    data: bytes
    def __init__(self, session_id: _Optional[str] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("name", "model_digest", "version", "sessions", "share")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_digest: str
    version: str
    sessions: int
    share: float
    def __init__(self, name: _Optional[str] = ..., model_digest: _Optional[str] = ..., version: _Optional[str] = ..., sessions: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "source", "version", "share")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    model: str
    source: str
    version: str
    share: float
    def __init__(self, model: _Optional[str] = ..., source: _Optional[str] = ..., version: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSummary
    def __init__(self, model: _Optional[_Union[ModelSummary, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version", "carry_over")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CARRY_OVER_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    carry_over: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., carry_over: bool = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("carried_over",)
    CARRIED_OVER_FIELD_NUMBER: _ClassVar[int]
    carried_over: int
    def __init__(self, carried_over: _Optional[int] = ...) -> None: ...

class MigrateSessionRequest(_message.Message):
    __slots__ = ("session_id", "incarnation", "version")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    version: str
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class MigrateSessionResponse(_message.Message):
    __slots__ = ("session", "changed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    changed: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., changed: bool = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("shape", "data_type")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data_type: DataType
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data_type: _Optional[_Union[DataType, str]] = ...) -> None: ...

class StateField(_message.Message):
    __slots__ = ("name", "shape", "dtype", "parts", "experience")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    parts: int
    experience: bool
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., parts: _Optional[int] = ..., experience: bool = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "config_json", "model_digest", "artifact", "fingerprint", "device", "state_bytes", "server_epoch", "server_version", "durability", "max_chunk_timesteps", "max_in_flight_chunks", "tile_rows", "artifact_note", "inputs", "outputs", "state", "derived", "debug_bytes", "task", "workers", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TILE_ROWS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_NOTE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DERIVED_FIELD_NUMBER: _ClassVar[int]
    DEBUG_BYTES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    config_json: str
    model_digest: str
    artifact: str
    fingerprint: str
    device: str
    state_bytes: int
    server_epoch: str
    server_version: str
    durability: str
    max_chunk_timesteps: int
    max_in_flight_chunks: int
    tile_rows: _containers.RepeatedScalarFieldContainer[int]
    artifact_note: str
    inputs: TensorSpec
    outputs: TensorSpec
    state: _containers.RepeatedCompositeFieldContainer[StateField]
    derived: _containers.RepeatedScalarFieldContainer[str]
    debug_bytes: int
    task: str
    workers: Workers
    version: str
    def __init__(self, name: _Optional[str] = ..., config_json: _Optional[str] = ..., model_digest: _Optional[str] = ..., artifact: _Optional[str] = ..., fingerprint: _Optional[str] = ..., device: _Optional[str] = ..., state_bytes: _Optional[int] = ..., server_epoch: _Optional[str] = ..., server_version: _Optional[str] = ..., durability: _Optional[str] = ..., max_chunk_timesteps: _Optional[int] = ..., max_in_flight_chunks: _Optional[int] = ..., tile_rows: _Optional[_Iterable[int]] = ..., artifact_note: _Optional[str] = ..., inputs: _Optional[_Union[TensorSpec, _Mapping]] = ..., outputs: _Optional[_Union[TensorSpec, _Mapping]] = ..., state: _Optional[_Iterable[_Union[StateField, _Mapping]]] = ..., derived: _Optional[_Iterable[str]] = ..., debug_bytes: _Optional[int] = ..., task: _Optional[str] = ..., workers: _Optional[_Union[Workers, _Mapping]] = ..., version: _Optional[str] = ...) -> None: ...

class Workers(_message.Message):
    __slots__ = ("machine", "number", "addresses")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    machine: str
    number: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, machine: _Optional[str] = ..., number: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("create_session", "get_session", "list_sessions", "delete_session", "step", "reset_session", "fork_session", "dump_memory", "export_session", "import_session", "get_model", "step_with_state", "list_models", "load_model", "unload_model", "migrate_session", "token")
    CREATE_SESSION_FIELD_NUMBER: _ClassVar[int]
    GET_SESSION_FIELD_NUMBER: _ClassVar[int]
    LIST_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DELETE_SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RESET_SESSION_FIELD_NUMBER: _ClassVar[int]
    FORK_SESSION_FIELD_NUMBER: _ClassVar[int]
    DUMP_MEMORY_FIELD_NUMBER: _ClassVar[int]
    EXPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    IMPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    GET_MODEL_FIELD_NUMBER: _ClassVar[int]
    STEP_WITH_STATE_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MODEL_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MIGRATE_SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    create_session: CreateSessionRequest
    get_session: GetSessionRequest
    list_sessions: ListSessionsRequest
    delete_session: DeleteSessionRequest
    step: StepRequest
    reset_session: ResetSessionRequest
    fork_session: ForkSessionRequest
    dump_memory: DumpMemoryRequest
    export_session: ExportSessionRequest
    import_session: ImportSessionRequest
    get_model: GetModelRequest
    step_with_state: StepWithStateRequest
    list_models: ListModelsRequest
    load_model: LoadModelRequest
    unload_model: UnloadModelRequest
    migrate_session: MigrateSessionRequest
    token: str
    def __init__(self, create_session: _Optional[_Union[CreateSessionRequest, _Mapping]] = ..., get_session: _Optional[_Union[GetSessionRequest, _Mapping]] = ..., list_sessions: _Optional[_Union[ListSessionsRequest, _Mapping]] = ..., delete_session: _Optional[_Union[DeleteSessionRequest, _Mapping]] = ..., step: _Optional[_Union[StepRequest, _Mapping]] = ..., reset_session: _Optional[_Union[ResetSessionRequest, _Mapping]] = ..., fork_session: _Optional[_Union[ForkSessionRequest, _Mapping]] = ..., dump_memory: _Optional[_Union[DumpMemoryRequest, _Mapping]] = ..., export_session: _Optional[_Union[ExportSessionRequest, _Mapping]] = ..., import_session: _Optional[_Union[ImportSessionRequest, _Mapping]] = ..., get_model: _Optional[_Union[GetModelRequest, _Mapping]] = ..., step_with_state: _Optional[_Union[StepWithStateRequest, _Mapping]] = ..., list_models: _Optional[_Union[ListModelsRequest, _Mapping]] = ..., load_model: _Optional[_Union[LoadModelRequest, _Mapping]] = ..., unload_model: _Optional[_Union[UnloadModelRequest, _Mapping]] = ..., migrate_session: _Optional[_Union[MigrateSessionRequest, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class CallResult(_message.Message):
    __slots__ = ("create_session", "get_session", "list_sessions", "delete_session", "step", "reset_session", "fork_session", "dump_memory", "export_session", "import_session", "get_model", "step_with_state", "list_models", "load_model", "unload_model", "migrate_session", "status")
    CREATE_SESSION_FIELD_NUMBER: _ClassVar[int]
    GET_SESSION_FIELD_NUMBER: _ClassVar[int]
    LIST_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DELETE_SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RESET_SESSION_FIELD_NUMBER: _ClassVar[int]
    FORK_SESSION_FIELD_NUMBER: _ClassVar[int]
    DUMP_MEMORY_FIELD_NUMBER: _ClassVar[int]
    EXPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    IMPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    GET_MODEL_FIELD_NUMBER: _ClassVar[int]
    STEP_WITH_STATE_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MODEL_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MIGRATE_SESSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    create_session: CreateSessionResponse
    get_session: GetSessionResponse
    list_sessions: ListSessionsResponse
    delete_session: DeleteSessionResponse
    step: StepResponse
    reset_session: ResetSessionResponse
    fork_session: ForkSessionResponse
    dump_memory: WholeDump
    export_session: ExportSessionResponse
    import_session: ImportSessionResponse
    get_model: GetModelResponse
    step_with_state: StepWithStateResponse
    list_models: ListModelsResponse
    load_model: LoadModelResponse
    unload_model: UnloadModelResponse
    migrate_session: MigrateSessionResponse
    status: _status_pb2.Status
    def __init__(self, create_session: _Optional[_Union[CreateSessionResponse, _Mapping]] = ..., get_session: _Optional[_Union[GetSessionResponse, _Mapping]] = ..., list_sessions: _Optional[_Union[ListSessionsResponse, _Mapping]] = ..., delete_session: _Optional[_Union[DeleteSessionResponse, _Mapping]] = ..., step: _Optional[_Union[StepResponse, _Mapping]] = ..., reset_session: _Optional[_Union[ResetSessionResponse, _Mapping]] = ..., fork_session: _Optional[_Union[ForkSessionResponse, _Mapping]] = ..., dump_memory: _Optional[_Union[WholeDump, _Mapping]] = ..., export_session: _Optional[_Union[ExportSessionResponse, _Mapping]] = ..., import_session: _Optional[_Union[ImportSessionResponse, _Mapping]] = ..., get_model: _Optional[_Union[GetModelResponse, _Mapping]] = ..., step_with_state: _Optional[_Union[StepWithStateResponse, _Mapping]] = ..., list_models: _Optional[_Union[ListModelsResponse, _Mapping]] = ..., load_model: _Optional[_Union[LoadModelResponse, _Mapping]] = ..., unload_model: _Optional[_Union[UnloadModelResponse, _Mapping]] = ..., migrate_session: _Optional[_Union[MigrateSessionResponse, _Mapping]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class WholeDump(_message.Message):
    __slots__ = ("session_id", "position", "experience", "arrays", "thinned")
    class ArraysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    class ThinnedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: WatchedArray
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[WatchedArray, _Mapping]] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    THINNED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    experience: int
    arrays: _containers.MessageMap[str, Array]
    thinned: _containers.MessageMap[str, WatchedArray]
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., experience: _Optional[int] = ..., arrays: _Optional[_Mapping[str, Array]] = ..., thinned: _Optional[_Mapping[str, WatchedArray]] = ...) -> None: ...
