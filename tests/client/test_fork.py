"""Forks: a child whose parent had used a client is told at once that gRPC can't work there; else all works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A child that hangs is killed by its own alarm, so that it fails the test and no more.
SCRIPT = """
import asyncio, multiprocessing, os, signal, sys
import numpy as np
from dnc_serve.client import AsyncClient, Client, ClientClosed

ADDRESS = sys.argv[1]
INPUTS = np.ones((2, 5), np.float32)

def use(client):
    with client.session() as session:
        session.step(INPUTS)

async def use_async(client):
    async with client.session() as session:
        await session.step(INPUTS)

def new():
    with Client(ADDRESS, timeout_s=10) as client:
        use(client)

async def new_async():
    async with AsyncClient(ADDRESS, timeout_s=10) as client:
        await use_async(client)

def said(call):
    try:
        call()
    except ClientClosed as error:
        return str(error)
    return "works"

def in_a_fork(*calls):
    for call in calls:
        with multiprocessing.get_context("fork").Pool(1, signal.alarm, (30,)) as pool:
            print(pool.apply(said, (call,)), flush=True)

def in_a_bare_fork(*calls):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(30)
        for call in calls:
            print(said(call), flush=True)
        sys.exit()  # an ordinary end, with all that was inherited collected
    print("ended with", os.waitpid(child, 0)[1], flush=True)
"""
TOLD = "gRPC doesn't work after that: start processes with spawn"


def output_of(tmp_path: Path, address: str, script: str, **env: str) -> list[str]:
    path = tmp_path / "forks.py"
    path.write_text(SCRIPT + script)
    done = subprocess.run(
        [sys.executable, str(path), address],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("support", ["", "0", "1"])
@pytest.mark.parametrize("before", ["client = Client(ADDRESS); use(client)", "new()", "asyncio.run(new_async())"])
def test_after_use_a_new_client_says_so_at_once(tmp_path: Path, address: str, before: str, support: str) -> None:
    """Whether the one that was used is open or closed, and whatever gRPC is told of forks."""
    env = {"GRPC_ENABLE_FORK_SUPPORT": support} if support else {}
    script = (
        f"{before}\nin_a_bare_fork(new, lambda: asyncio.run(new_async()))\nin_a_fork(new)\nnew()\nprint('parent works')"
    )
    *told, end, pool, parent = output_of(tmp_path, address, script, **env)
    assert all(TOLD in line for line in (*told, pool))
    assert len(told) == 2
    assert (end, parent) == ("ended with 0", "parent works")


def test_before_any_use_a_fork_is_free_to_use_its_own(tmp_path: Path, address: str) -> None:
    """As where a web server loads the application, and forks its workers then: what was made before is not used."""
    script = """
client = Client(ADDRESS)
in_a_bare_fork(new, lambda: asyncio.run(new_async()), client.model)
in_a_fork(new)
"""
    *works, inherited, end, pool = output_of(tmp_path, address, script)
    assert works == ["works", "works"]
    assert "make a new one after the fork" in inherited
    assert (end, pool) == ("ended with 0", "works")


def test_spawned_processes_work_whatever_was_used(tmp_path: Path, address: str) -> None:
    script = """
if __name__ == "__main__":
    new()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(said, (new,)))
"""
    assert output_of(tmp_path, address, script) == ["works"]
