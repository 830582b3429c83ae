"""Runs in Triton's Python backend: a dict of states by correlation id, requests batched by hand.

The backend's stub doesn't see an environment's packages.
"""

import os
import sys

sys.path.insert(0, os.environ["BENCH_SITE_PACKAGES"])

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """INPUT [1, T, I] of one sequence to OUTPUT [1, T, O]."""

    def initialize(self, args):
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self.module = torch.jit.load(os.environ["BENCH_ARTIFACT"]).eval()
        self.state_size = int(os.environ["BENCH_STATE_SIZE"])
        self.states = {}

    def execute(self, requests):
        groups, ended = {}, set()
        for place, request in enumerate(requests):
            inputs, start, end, sequence = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("INPUT", "START", "END", "CORRID")
            )
            sequence = int(sequence.flat[0])
            if start.flat[0] or sequence not in self.states:
                self.states[sequence] = torch.zeros(self.state_size)
            if end.flat[0]:
                ended.add(sequence)
            groups.setdefault(inputs.shape[1], []).append((place, sequence, torch.from_numpy(inputs[0])))
        responses = [None] * len(requests)
        for group in groups.values():
            with torch.inference_mode():
                inputs = torch.stack([inputs for _, _, inputs in group], 1)
                states = torch.stack([self.states[sequence] for _, sequence, _ in group])
                outputs, states = self.module(inputs, states)
            for row, (place, sequence, _) in enumerate(group):
                self.states[sequence] = states[row]
                output = pb_utils.Tensor("OUTPUT", outputs[:, row].unsqueeze(0).contiguous().numpy())
                responses[place] = pb_utils.InferenceResponse([output])
        for sequence in ended:
            del self.states[sequence]
        return responses
