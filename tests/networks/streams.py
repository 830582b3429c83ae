"""A client on a machine of its own: `python -m tests.networks.streams ARTIFACT HISTORY SESSIONS ADDRESS…`.

Streams sessions, and records what it is answered. For each line that it reads it waits until no stream has stood still,
and prints one; when there are no more, it ends, and prints how many timesteps were lost, doubled or other.
"""

import asyncio
import sys
from pathlib import Path

from tests.end_to_end.streaming import Stream, live, lost_doubled_differing, none_stands_still
from tests.histories.recorder import recorded


def main(artifact: str, history: str, sessions: str, *addresses: str) -> None:
    streams = [Stream(number) for number in range(int(sessions))]

    async def obey() -> None:
        while await asyncio.to_thread(sys.stdin.readline):
            await none_stands_still(streams)
            print("none stands still", flush=True)

    with recorded(Path(history)):
        positions = asyncio.run(live(addresses, streams, obey))
    print(*lost_doubled_differing(Path(artifact), streams, positions), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
