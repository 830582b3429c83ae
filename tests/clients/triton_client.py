"""tritonclient in a process of its own: `python -m tests.clients.triton_client KIND ADDRESS MODEL`.

Its generated code has the names of ours, so that one process can't have both. Each line of the input is a list of
requests in JSON, sent without waiting for answers where KIND can do so; each line of the output lists their answers.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

Request = dict[str, Any]
Answer = dict[str, Any]


def inputs_of(module: Any, request: Request) -> list[Any]:
    values = np.array(request["inputs"], np.float32)
    tensor = module.InferInput("INPUT", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def options_of(request: Request) -> dict[str, Any]:
    return {
        "sequence_id": request.get("sequence_id", 0),
        "sequence_start": request.get("start", False),
        "sequence_end": request.get("end", False),
        "request_id": request.get("id", ""),
        "parameters": request.get("parameters"),
    }


def answer_of(result: Any) -> Answer:
    response = result.get_response()
    outputs = result.as_numpy("OUTPUT").tolist()
    if isinstance(response, dict):  # HTTP
        return {"outputs": outputs, "id": response.get("id", ""), **response.get("parameters", {})}
    values = {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in response.parameters.items()}
    return {"outputs": outputs, "id": response.id, **values}


def refusal_of(error: Any) -> Answer:
    return {"error": error.message(), "status": error.status()}


def one_by_one(infer: Callable[[Request], Any]) -> Callable[[list[Request]], list[Answer]]:
    from tritonclient.utils import InferenceServerException

    def answer(requests: list[Request]) -> list[Answer]:
        answers = []
        for request in requests:
            try:
                answers.append(answer_of(infer(request)))
            except InferenceServerException as error:
                answers.append(refusal_of(error))
        return answers

    return answer


def sync(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.grpc as module

    client = module.InferenceServerClient(address)
    return one_by_one(lambda one: client.infer(model, inputs_of(module, one), **options_of(one)))


def http(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.http as module

    client = module.InferenceServerClient(address)
    return one_by_one(lambda one: client.infer(model, inputs_of(module, one), **options_of(one)))


def stream(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.grpc as module

    client = module.InferenceServerClient(address)
    came: queue.Queue[Answer] = queue.Queue()
    client.start_stream(lambda result, error: came.put(refusal_of(error) if error else answer_of(result)))

    def answer(requests: list[Request]) -> list[Answer]:
        for one in requests:
            final = one.get("final", False)
            client.async_stream_infer(
                model, inputs_of(module, one), enable_empty_final_response=final, **options_of(one)
            )
        return [came.get() for _ in requests]

    return answer


def aio(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.grpc.aio as module

    async def answer(requests: list[Request]) -> list[Answer]:
        async def messages() -> AsyncIterator[dict[str, Any]]:
            for one in requests:
                yield {"model_name": model, "inputs": inputs_of(module, one), **options_of(one)}

        async with module.InferenceServerClient(address) as client:
            answers = client.stream_infer(messages())
            return [refusal_of(error) if error else answer_of(result) async for result, error in answers]

    return lambda requests: asyncio.run(answer(requests))


def main(kind: str, address: str, model: str) -> None:
    answer = {"sync": sync, "aio": aio, "stream": stream, "http": http}[kind](address, model)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
