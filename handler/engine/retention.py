"""How far back the journal reaches: what is older than so many hours, or beyond so many bytes, is pruned.

Of each session the two newest snapshots stay, with all records after the older one, so that a damaged snapshot can be
fallen back from.
"""

from dnc_serve.handler.store.contract import Prune, Store

SNAPSHOTS_KEPT = 2


def to_prune(store: Store, now: float, history_s: float, history_bytes: int) -> list[Prune]:
    """What may go; reads the store, so it runs in a worker thread."""
    size = store.size_bytes()
    history = list(store.history())
    # Records are about alike in size, so a share of the bytes is that share of the oldest records.
    beyond = int(len(history) * max(0.0, 1.0 - history_bytes / size)) if size else 0
    old = now - history_s
    wanted: dict[tuple[str, int], int] = {}
    for number, (session_id, incarnation, ordinal, at) in enumerate(history):
        if number >= beyond and at >= old:
            break
        wanted[session_id, incarnation] = ordinal
    prunes = []
    for (session_id, incarnation), ordinal in wanted.items():
        snapshots = store.snapshots(session_id, incarnation)
        # Pruning ends at a snapshot: records between two of them are of no use without the earlier.
        prunable = [info.ordinal for info in snapshots[SNAPSHOTS_KEPT - 1 :] if info.ordinal <= ordinal]
        if not prunable and size > history_bytes and len(snapshots) >= SNAPSHOTS_KEPT:
            prunable = [snapshots[SNAPSHOTS_KEPT - 1].ordinal]
        if prunable:
            prunes.append(Prune(session_id, incarnation, prunable[0]))
    return prunes
