"""A model of the size that the `dnc` package's README shows, served, beside the same model in a bare loop.

A step of it is many times the work of the bundled models': what a server adds should vanish beside it.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dnc_serve.client.cli.measure import bare
from dnc_serve.client.cli.measure.aside import Aside
from dnc_serve.client.cli.measure.load import Load, model_of, own_streams, shared_streams, stream_load
from dnc_serve.client.cli.measure.lockstep import Span
from dnc_serve.client.cli.measure.rounds import Ratio, in_turns, median_figures, median_of
from dnc_serve.client.cli.measure.served import served
from dnc_serve.model.dnc import DNC
from dnc_serve.model.weights import save_weights

SIZES: dict[str, Any] = {
    "input_size": 64, "hidden_size": 128, "rnn_type": "lstm", "num_layers": 4, "num_hidden_layers": 1, "nr_cells": 100,
    "cell_size": 32, "read_heads": 4,
}  # fmt: skip
MANY, CHUNK = 64, 16
OF_BARE = 0.9
BARE = "bare"
# By their labels: the sessions of each stream, and how many of them wait for an answer.
LOADS = {
    f"{MANY} streams, chunks of {CHUNK}": (own_streams(MANY), 1),
    f"one stream of {MANY} sessions, chunks of {CHUNK}": (shared_streams(MANY, 1), MANY),
}


def measure(load: Aside, alone: Aside, code: str, rounds: int, span: Span) -> dict[str, Any]:
    """Figures of both loads, timesteps/s of the bare loop of tiles, and what they come to. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="dnc-bench-") as folder:
        torch.manual_seed(0)
        save_weights(DNC(**SIZES), Path(folder))
        with served(folder, "--slots", str(MANY), code=code) as server:
            input_size, _, artifact, device = load.run(model_of, server.grpc)
            unroll = (server.artifact(folder), device, code, CHUNK, span.seconds / 2)
            measures: dict[str, Any] = {BARE: partial(alone.run, bare.timesteps_per_s, *unroll)}
            for label, (streams, in_flight) in LOADS.items():
                asked = Load(server.grpc, streams, CHUNK, input_size, span, in_flight)
                measures[label] = partial(load.run, stream_load, asked)
            turns = in_turns(measures, rounds)
    ratios = []
    for label in LOADS:
        of_bare = median_of(turns, lambda turn, label=label: turn[label].timesteps_per_s / turn[BARE])  # type: ignore[misc]
        ratios.append(Ratio(f"README size, {label}: rate / bare", of_bare, at_least=OF_BARE))
    return {
        "artifact": artifact,
        "bare_timesteps_per_s": median_of(turns, lambda turn: turn[BARE]),
        "rows": {label: median_figures(turns, label) for label in LOADS},
        "ratios": ratios,
    }
