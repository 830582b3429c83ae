"""Which worker of a machine has a session: the same sum for servers and clients, and for whoever writes another one.

Rendezvous hashing: each worker, numbered from 0, draws a number for the session's id, and the highest wins. Of N
workers' sessions, another worker more takes 1 / (N + 1) of each, and moves no other.
"""

from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=1 << 16)
def owner_of(session_id: str, workers: int) -> int:
    """The number of the worker that has the session, of so many.

    `Workers` in the contract says what a worker draws; the highest wins.
    """
    name = session_id.encode(errors="surrogatepass")
    return max(
        range(workers), key=lambda worker: blake2b(name, digest_size=8, salt=worker.to_bytes(8, "little")).digest()
    )
