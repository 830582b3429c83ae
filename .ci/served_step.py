"""Starts `dnc serve`, takes one step with the client of this environment, and stops it."""

import subprocess
import sys
import tempfile

import numpy as np

from dnc_serve.client import Client

PORTS = ("port", "metrics-port", "torchserve-http-port", "torchserve-grpc-port", "torchserve-management-port",
         "torchserve-metrics-port", "torchserve-grpc-management-port")  # fmt: skip

with tempfile.TemporaryDirectory() as state:
    command = [sys.argv[1], "serve", "--state-dir", state, *(f"--{port}=0" for port in PORTS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = server.stdout.readline().split()
        if not ready or ready[0] != "ready":
            sys.exit(f"dnc serve said {ready}")
        addresses = dict(word.split("=", 1) for word in ready[1:])
        with Client(addresses["grpc"]) as client, client.session("wheel") as session:
            outputs = session.step(np.ones((3, client.model().input_size), np.float32))
            assert outputs.shape == (3, client.model().output_size), outputs.shape
            assert np.isfinite(outputs).all()
            print("one chunk served:", outputs.shape)
    finally:
        server.terminate()
        server.wait(timeout=60)
