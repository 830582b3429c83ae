"""KServe's client, run by an interpreter that has it: `python kserve_client.py ADDRESS MODEL`.

Lines of requests and of answers in JSON, as those of `triton_client.py`; `binary` says whether inputs go as raw bytes.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient


async def answer(client: InferenceGRPCClient, model: str, request: dict) -> dict:
    values = np.array(request["inputs"], np.float32)
    tensor = InferInput("INPUT", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=request.get("binary", False))
    parameters = {
        "sequence_id": request["sequence_id"],
        "sequence_start": request["start"],
        "sequence_end": request["end"],
    }
    asked = InferRequest(model, [tensor], request_id=request.get("id"), parameters=parameters)
    answered = await client.infer(asked)
    values = {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in answered.parameters.items()}
    return {"outputs": answered.outputs[0].as_numpy().tolist(), "id": answered.id, **values}


async def main(address: str, model: str) -> None:
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_ready() and await client.is_server_live() and await client.is_model_ready(model)
        while line := await asyncio.to_thread(sys.stdin.readline):
            answers = [await answer(client, model, one) for one in json.loads(line)]
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
