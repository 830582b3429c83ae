"""What a chunk costs of our own Python: how many files a reader of its path opens, and how many calls it makes."""

import queue
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from dnc_serve import handler
from dnc_serve.handler.engine.engine import Engine
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, open_door
from tests.handler.harness import random_inputs

ROOT = Path(handler.__file__).parents[1]
OURS = tuple(f"{ROOT / part}/" for part in ("handler", "model", "proto"))
INLINE = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
MAX_FILES, MAX_CALLS = 28, 85  # as measured: whoever raises them says what for
WARM_UP, MEASURED = 20, 20


class PathOfAChunk:
    """The calls that the server's loop makes of our functions, while it is recorded."""

    def __init__(self, door: Door) -> None:
        self._loop = door.server._loop
        self.calls: Counter[CodeType] = Counter()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS) and code.co_name not in INLINE:
            self.calls[code] += 1

    def record(self, on: bool) -> None:
        """Returns when it is so."""
        done: queue.SimpleQueue[None] = queue.SimpleQueue()

        def switch() -> None:
            sys.setprofile(self._profile if on else None)
            done.put(None)

        self._loop.call_soon_threadsafe(switch)
        done.get(timeout=TIMEOUT)


def test_a_streamed_chunk_takes_few_files_and_few_calls(artifact_folder: Path, tmp_path: Path) -> None:
    with open_door(artifact_folder, tmp_path) as door:
        door.create("s")
        messages: queue.SimpleQueue[pb.StreamRequest | None] = queue.SimpleQueue()
        replies = door.stub.Stream(iter(messages.get, None), timeout=TIMEOUT)

        def step(position: int) -> None:
            messages.put(pb.StreamRequest(chunk=chunk("s", random_inputs(0, 1), position=position)))
            assert next(replies).chunk.position == position + 1

        for position in range(WARM_UP):
            step(position)
        paths = []
        for position in range(WARM_UP, WARM_UP + MEASURED):
            path = PathOfAChunk(door)
            path.record(True)
            step(position)
            path.record(False)
            paths.append(path.calls)
        messages.put(None)
    calls = min(paths, key=lambda path: path.total())  # whatever else the loop was at
    files = {Path(code.co_filename).relative_to(ROOT) for code in calls}
    for code, count in calls.items():
        print(f"{count:3} {Path(code.co_filename).relative_to(ROOT)}:{code.co_qualname}")
    print(f"{calls.total()} calls of {len(calls)} functions in {len(files)} files")
    assert calls[Engine.step.__code__] == 1
    assert calls.total() <= MAX_CALLS
    assert len(files) <= MAX_FILES
