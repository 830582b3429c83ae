"""Histories: what clients sent and were answered, and a checker that knows nothing of the server but its contract.

`recorder.py` writes every message to a file of JSON lines; `operations.py` reads them as calls; `session.py` is a
session as the contract has it; `checker.py` looks for an order of all calls that explains all answers, and `shrink.py`
for the smallest part of a history that has none. `load.py` puts a random load on any server.
"""
