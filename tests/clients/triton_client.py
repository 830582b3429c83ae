"""tritonclient in a process of its own: `python -m tests.clients.triton_client KIND ADDRESS MODEL`.

Its generated code has the names of ours, so that one process can't have both. Each line of the input is a list of
requests in JSON, sent without waiting for answers where KIND can do so; each line of the output lists their answers.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
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


def headers_of(requests: list[Request]) -> dict[str, str] | None:
    """A stream has those of its first request."""
    return requests[0].get("headers")


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
    return one_by_one(
        lambda one: client.infer(model, inputs_of(module, one), headers=headers_of([one]), **options_of(one))
    )


def http(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.http as module

    client = module.InferenceServerClient(address)
    return one_by_one(lambda one: client.infer(model, inputs_of(module, one), **options_of(one)))


def stream(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.grpc as module
    from tritonclient.utils import InferenceServerException

    client = module.InferenceServerClient(address)
    streams: list[tuple[dict[str, str] | None, queue.Queue[Answer]]] = []  # the present one: its headers and answers

    def start(headers: dict[str, str] | None) -> None:
        came: queue.Queue[Answer] = queue.Queue()
        client.start_stream(
            lambda result, error: came.put(refusal_of(error) if error else answer_of(result)), headers=headers
        )
        streams.append((headers, came))

    def stop(at_once: bool) -> None:
        client.stop_stream(cancel_requests=at_once)
        streams.clear()

    def answer(requests: list[Request]) -> list[Answer]:
        headers = headers_of(requests)
        if streams and streams[0][0] != headers:
            stop(at_once=True)
        if not streams:
            start(headers)
        came = streams[0][1]
        with suppress(InferenceServerException):  # it has ended meanwhile, and told why as an answer
            for one in requests:
                final = one.get("final", False)
                client.async_stream_infer(
                    model, inputs_of(module, one), enable_empty_final_response=final, **options_of(one)
                )
        answers = [came.get()]
        while len(answers) < len(requests) and not broken(answers[-1]):
            answers.append(came.get())
        if broken(answers[-1]):
            stop(at_once=False)
        return answers

    return answer


def broken(answer: Answer) -> bool:
    """Whether the stream has ended with it: what is refused on a stream that lives has no status."""
    return answer.get("status") is not None


def aio(address: str, model: str) -> Callable[[list[Request]], list[Answer]]:
    import tritonclient.grpc.aio as module

    async def answer(requests: list[Request]) -> list[Answer]:
        async def messages() -> AsyncIterator[dict[str, Any]]:
            for one in requests:
                yield {"model_name": model, "inputs": inputs_of(module, one), **options_of(one)}

        async with module.InferenceServerClient(address) as client:
            answers = client.stream_infer(messages(), headers=headers_of(requests))
            try:
                return [refusal_of(error) if error else answer_of(result) async for result, error in answers]
            except grpc.RpcError as error:  # the stream itself
                return [{"error": error.details(), "status": str(error.code())}]

    return lambda requests: asyncio.run(answer(requests))


def main(kind: str, address: str, model: str) -> None:
    answer = {"sync": sync, "aio": aio, "stream": stream, "http": http}[kind](address, model)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
