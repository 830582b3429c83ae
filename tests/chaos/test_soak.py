"""Sessions that come and go on many streams for a while: no error, none left behind, and memory that does not grow.

`python -m bench.soak` is the same for twenty minutes, and judges latency too; here the machine may be busy.
"""

from pathlib import Path

import pytest

from bench.soak import growth, moments_of, soak
from dnc_serve.client.cli.measure.served import served

STREAMS, SECONDS = 256, 180.0
# Left-over sessions would be more than half of those that ended; with this they are gone before the load is over.
IDLE_TIMEOUT_S = 5
# The journal's caches and the allocator may still be on their way to their level; a leak would be far more.
GROWTH = 1.10


@pytest.mark.long
def test_sessions_come_and_go_without_errors_and_memory_stays(artifact_folder: Path) -> None:
    with served(str(artifact_folder), "--idle-timeout-s", str(IDLE_TIMEOUT_S)) as server:
        looks, callers = soak(server, STREAMS, SECONDS)
    moments = moments_of(looks)
    print(f"{callers}; resident memory {[round(look.rss_mib) for look in looks]} MiB")
    assert callers.calls > callers.sessions > STREAMS
    assert callers.refusals == 0
    assert moments[-1].errors == 0
    assert moments[-1].sessions < callers.sessions
    assert growth(moments, "rss_mib") <= GROWTH
