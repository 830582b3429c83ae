"""The HTTP endpoint in OpenAPI 3.1."""

from collections.abc import Iterable
from typing import Any

from dnc_serve import __version__
from dnc_serve.handler.api.sequences import Sequences
from dnc_serve.handler.api.tensors import NUMPY_DATATYPES, Tensor
from dnc_serve.proto.dnc.v1 import dnc_pb2

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "format": "int64"}
SEQUENCE_PARAMETERS: Schema = {
    "sequence_id": {
        "type": ["integer", "string"],
        "description": "The sequence: the session of this id. A text has 1 to 128 of A-Z a-z 0-9 . _ ~ : @ -",
    },
    "sequence_start": {"type": "boolean", "description": "Begins the sequence anew."},
    "sequence_end": {"type": "boolean", "description": "Answers, and ends the sequence."},
    "position": NUMBER | {"description": "The timesteps that came before: so a request may be sent again."},
    "incarnation": {"type": ["string", "integer"], "description": "As answers say it."},
    "binary_data_output": {"type": "boolean", "description": "Outputs as bytes behind the JSON."},
}
REFUSALS = (400, 401, 403, 404, 409, 429, 503)
SESSION: Schema = {"name": "id", "in": "path", "required": True, "schema": TEXT}
CHUNK: Schema = {"name": "chunk", "in": "query", "schema": NUMBER, "description": "Timesteps an event (1)."}
LOOK: tuple[Schema, ...] = (
    {"name": "names", "in": "query", "schema": TEXT, "description": "Fields of the state, divided by commas (all)."},
    {"name": "max_cells", "in": "query", "schema": NUMBER, "description": "Larger arrays are thinned (1024)."},
    {"name": "max_frames_per_second", "in": "query", "schema": NUMBER, "description": "At most (10)."},
)


def openapi(models: Iterable[Sequences]) -> Schema:
    """The paths for the models that are served."""
    models = list(models)
    model = [{"name": "model", "in": "path", "required": True, "schema": _one_of_names(models)}]
    model_path = "/v2/models/{model}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "dnc-serve", "version": __version__, "license": {"name": "Apache-2.0"}},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(models),
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/v2/health/live": {"get": _call("live", "Whether the server answers.")},
            "/v2/health/ready": {"get": _call("ready", "Whether it serves.", others=(503,))},
            "/v2": {"get": _call("server", "The server's name, version and extensions.", "Server")},
            model_path: {"parameters": model, "get": _call("metadata", "The model's tensors.", "Model")},
            f"{model_path}/ready": {
                "parameters": model,
                "get": _call("modelReady", "Whether the model serves.", others=(404, 503)),
            },
            f"{model_path}/config": {
                "parameters": model,
                "get": _call("config", "The model's configuration, as Triton's.", "Any"),
            },
            f"{model_path}/stats": {"parameters": model, "get": _call("statistics", "What was counted.", "Any")},
            f"{model_path}/infer": {"parameters": model, "post": _infer()},
            "/v2/models/stats": {"get": _call("allStatistics", "What was counted, by model.", "Any", others=(401,))},
            "/v2/repository/index": {"post": _call("index", "The models that there are.", "Index", others=(401,))},
            "/v1/call": {"post": _own_call()},
            "/v1/sessions/{id}/steps": {"parameters": [SESSION, CHUNK], "post": _steps()},
            "/v1/sessions/{id}/memory": {"parameters": [SESSION, *LOOK], "get": _memory()},
        },
    }


def _infer() -> Schema:
    call = _call("infer", "Steps a sequence.", "InferResponse", others=REFUSALS)
    call["requestBody"] = {"required": True, "content": _content("InferRequest")}
    return call


def _own_call() -> Schema:
    """Of dnc.v1, whose messages the shipped proto describes."""
    call = _call("call", "Any call of dnc.v1, by its name.", "Any", REFUSALS)
    calls = [field.name for field in dnc_pb2.Call.DESCRIPTOR.oneofs_by_name["call"].fields]
    schema = {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": {name: {} for name in calls}}
    call["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return call


def _steps() -> Schema:
    schema = _object(inputs={"type": "array"}) | {
        "description": "A Chunk of dnc.v1; with `position` the request may be sent again.",
        "properties": {"inputs": {"type": "array"}, "position": NUMBER, "incarnation": TEXT},
    }
    call = _events("steps", "Steps a session: an event `chunk` for each chunk of timesteps, then `end`, or `error`.")
    call["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return call


def _memory() -> Schema:
    return _events("memory", "The state now and after each change, as events `frame`.")


def _events(name: str, summary: str) -> Schema:
    call = _call(name, summary, others=REFUSALS)
    call["responses"]["200"]["content"] = {"text/event-stream": {"schema": TEXT}}
    return call


def _call(name: str, summary: str, answer: str = "", others: tuple[int, ...] = (401, 404)) -> Schema:
    answers: Schema = {"200": {"description": "Yes."}}
    if answer:
        answers["200"] = {"description": "The answer.", "content": _content(answer)}
    for status in others:
        answers[str(status)] = {"description": "Refused.", "content": _content("Error")}
    return {"operationId": name, "summary": summary, "responses": answers}


def _content(schema: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _one_of_names(models: list[Sequences]) -> Schema:
    return {"enum": [one.name for one in models]}


def _schemas(models: list[Sequences]) -> Schema:
    tensor = _object(name=TEXT, datatype=TEXT, shape={"type": "array", "items": NUMBER})
    parameters = _object(**SEQUENCE_PARAMETERS) | {"required": []}
    return {
        "Any": {"type": "object"},
        "Error": _object(error=TEXT) | {"properties": {"error": TEXT, "reason": TEXT, "metadata": {"type": "object"}}},
        "Server": _object(name=TEXT, version=TEXT, extensions=_list(TEXT)),
        "Model": _object(
            name=_one_of_names(models),
            versions=_list(TEXT),
            platform=TEXT,
            inputs=_list(tensor),
            outputs=_list(tensor),
        ),
        "Index": _list(_object(name=TEXT, version=TEXT, state=TEXT)),
        "InferRequest": _object(
            parameters=parameters | {"required": ["sequence_id"]},
            inputs={"type": "array", "minItems": 1, "maxItems": 1, "items": _any_of([one.input for one in models])},
        )
        | {
            "description": "Bytes of inputs may follow the JSON: the header Inference-Header-Content-Length then gives "
            "its length, and binary_data_size of an input's parameters theirs.",
        },
        "InferResponse": _object(
            model_name=_one_of_names(models),
            model_version=TEXT,
            parameters=_object(position=NUMBER, incarnation=TEXT),
            outputs=_list(_any_of([one.output for one in models])),
        ),
    }


def _any_of(tensors: list[Tensor]) -> Schema:
    """That of any model."""
    schemas = [_tensor(tensor) for tensor in dict.fromkeys(tensors)]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _tensor(tensor: Tensor) -> Schema:
    sizes = [NUMBER, *({"const": size} for size in tensor.timestep)]
    shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
    schema = _object(name={"const": tensor.name}, datatype={"enum": [*NUMPY_DATATYPES]}, shape=shape)
    schema["properties"] |= {"data": {"type": "array"}, "parameters": {"type": "object"}}
    return schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties]}
