"""What one would write in an afternoon: the `dnc` package behind TorchServe, and a dict of hidden states.

As TorchServe's stateful example: the state of a session stays in the handler, under the id that comes with the request.
The rows of a batch are stacked where their chunks are of one length. What was answered is lost with the worker.
"""

import json
import os
import sys

import numpy as np
import torch


class AfternoonHandler:
    """Rows of `session` and `data` (float32 [T, I]) to float32 [T, O]."""

    def initialize(self, context):
        sys.path.insert(0, os.environ["BENCH_DNC_PACKAGE"])
        from dnc import DNC

        torch.set_num_threads(1)
        self.manifest = context.manifest
        sizes = json.loads(os.environ["BENCH_DNC_SIZES"])
        torch.manual_seed(0)
        self.model = DNC(**sizes).eval()
        self.input_size = sizes["input_size"]
        self.hidden_states = {}

    def handle(self, rows, context):
        groups = {}
        for place, row in enumerate(rows):
            inputs = np.frombuffer(bytes(row["data"]), np.float32).reshape(-1, self.input_size)
            groups.setdefault(len(inputs), []).append((place, bytes(row["session"]).decode(), inputs))
        answers = [b""] * len(rows)
        for group in groups.values():
            self.step(group, answers)
        return answers

    def step(self, group, answers):
        inputs = torch.from_numpy(np.stack([inputs for _, _, inputs in group]))
        with torch.inference_mode():
            hidden = joined([self.hidden_states.get(session) or self.fresh() for _, session, _ in group])
            outputs, hidden = self.model(inputs, hidden, reset_experience=False, pass_through_memory=True)
        for row, (place, session, _) in enumerate(group):
            self.hidden_states[session] = taken(hidden, row)
            answers[place] = outputs[row].numpy().tobytes()

    def fresh(self):
        return self.model._init_hidden((None, None, None), 1, True)


# The package keeps controller states as [layers, B, H], everything else with B in front.


def joined(hiddens):
    controllers = [
        tuple(torch.cat(parts, 1) for parts in zip(*layers, strict=True))
        for layers in zip(*(hidden[0] for hidden in hiddens), strict=True)
    ]
    memory = {name: torch.cat([hidden[1][name] for hidden in hiddens]) for name in hiddens[0][1]}
    return controllers, memory, torch.cat([hidden[2] for hidden in hiddens])


def taken(hidden, row):
    controllers, memory, last_read = hidden
    return (
        [tuple(part[:, row : row + 1].clone() for part in layer) for layer in controllers],
        {name: value[row : row + 1].clone() for name, value in memory.items()},
        last_read[row : row + 1].clone(),
    )
