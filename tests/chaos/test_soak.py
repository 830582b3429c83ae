"""Sessions that come and go on many streams for a while: no error, none left behind, and memory that does not grow.

`python -m bench.soak` is the same for twenty minutes, and judges latency too; here the machine may be busy.
"""

from pathlib import Path

import pytest

from bench.run import aside
from bench.servers import served
from bench.soak import growth, moments_of, soak

# Left-over sessions would be more than half of those that ended; with this they are gone before the load is over.
IDLE_TIMEOUT_S = 5


# In the short run, the journal's caches and the allocator are still on their way to their level.
@pytest.mark.parametrize(
    ("streams", "seconds", "at_most"), [(64, 30.0, 1.10), pytest.param(256, 180.0, 1.03, marks=pytest.mark.long)]
)
def test_sessions_come_and_go_without_errors_and_memory_stays(
    artifact_folder: Path, streams: int, seconds: float, at_most: float
) -> None:
    with served(str(artifact_folder), "--idle-timeout-s", str(IDLE_TIMEOUT_S)) as server, aside() as load:
        looks, callers = soak(server, load, streams, seconds)
    moments = moments_of(looks)
    print(f"{callers}; resident memory {[round(look.rss_mib) for look in looks]} MiB")
    assert callers.calls > callers.sessions > streams
    assert callers.refusals == 0
    assert moments[-1].errors == 0
    assert moments[-1].sessions < callers.sessions
    assert growth(moments, "rss_mib") <= at_most
