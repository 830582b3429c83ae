"""What hostile input at the doors does to a well-behaved session's wait, by the server's own histogram.

    python -m bench.hostile [--docs docs] [--code auto] [--quick] [--rounds 5]

A session steps one timestep at a time, alone and then beside each kind of attack. The histogram of the queue wait knows
no sessions, but nothing that the attackers send is ever stepped (see `attacks.py`), so it counts this one alone; the
program makes sure of it. The attackers have the lowest priority: they stand for other machines, and share our cores.
"""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial

import grpc

from bench.attacks import ATTACKS, VICTIMS, Attack, Doors
from bench.fairness import QUEUE_WAIT, TICK_DURATION
from bench.report import finish, markdown_table, parser_of
from dnc_serve.client.cli.measure.aside import Aside, aside
from dnc_serve.client.cli.measure.load import Load, create, model_of, stream_load
from dnc_serve.client.cli.measure.lockstep import Span
from dnc_serve.client.cli.measure.rounds import Ratio, Turn, in_turns, machine, median_of
from dnc_serve.client.cli.measure.served import Served, quantile, served
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc

MODEL = "copy"
FIGURES = {
    "mean wait": "wait_mean_ms",
    "p99 of wait": "wait_p99_ms",
    "p99 of wait + tick": "wait_and_tick_p99_ms",
}
POLITE = "polite"
ALONE = "alone"
WARM_UP_S = 0.2
SETTLE_S = 1.0
AT_MOST = 3.0
# Of the chunks that the histogram counts, so many may be others': a mutation may happen to be a good one.
STRANGERS = 0.02


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs (5)")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, 4.0)
    with served(MODEL, code=arguments.code) as server, aside() as polite, aside() as attacker:
        attacker.run(os.nice, 19)
        doors = Doors(server.grpc, server.torchserve_grpc, polite.run(model_of, server.grpc)[0])
        polite.run(create, server.grpc, [POLITE, *VICTIMS])
        attacks = {
            name: partial(_attacked, server, polite, attacker, attack, doors, seconds)
            for name, attack in ATTACKS.items()
        }
        turns = in_turns({ALONE: partial(_waits, server, polite, doors, seconds), **attacks}, rounds)
    ratios = [
        Ratio(
            f"{name}: a well-behaved session's {what} / alone",
            median_of(turns, partial(_beside_alone, name, figure)),
            at_most=AT_MOST,
        )
        for name in ATTACKS
        for what, figure in FIGURES.items()
    ]
    report = {
        "machine": machine(),
        "code": arguments.code,
        "turns": turns,
        "ratios": [ratio.as_dict() for ratio in ratios],
    }
    finish("hostile", report, _table(turns), arguments.docs)


def _waits(server: Served, polite: Aside, doors: Doors, seconds: float) -> dict[str, float]:
    """The well-behaved session's queue waits; raises RuntimeError if it loses something, or others' are among them."""
    position = polite.run(_position, doors.grpc)
    before = server.metrics()
    figures = polite.run(stream_load, Load(doors.grpc, ((POLITE,),), 1, doors.input_size, Span(seconds, WARM_UP_S)))
    after = server.metrics()
    own = polite.run(_position, doors.grpc) - position
    counted, waited = (_grown(before, after, f"{QUEUE_WAIT}_{part}") for part in ("count", "sum"))
    if not own <= counted <= own * (1 + STRANGERS):
        raise RuntimeError(f"the histogram counted {counted:.0f} chunks, the well-behaved session's were {own}")
    wait, tick = (quantile(before, after, name, 0.99) * 1000 for name in (QUEUE_WAIT, TICK_DURATION))
    return {
        "wait_mean_ms": waited / counted * 1000,
        "wait_p99_ms": wait,
        "wait_and_tick_p99_ms": wait + tick,
        "call_p50_ms": figures.p50_ms,
        "call_p99_ms": figures.p99_ms,
        "calls": figures.calls,
        "thrown_per_s": 0.0,
    }


def _position(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = pb.GetSessionRequest(session_id=POLITE)
        return int(dnc_pb2_grpc.DncServiceStub(channel).GetSession(request, timeout=30).session.position)


def _attacked(
    server: Served, polite: Aside, attacker: Aside, attack: Attack, doors: Doors, seconds: float
) -> dict[str, float]:
    lasts_s = SETTLE_S + WARM_UP_S + seconds + SETTLE_S
    attacking = attacker.start(attack, doors, lasts_s)
    time.sleep(SETTLE_S)
    waits = _waits(server, polite, doors, seconds)
    return {**waits, "thrown_per_s": attacking.result() / lasts_s}


def _grown(before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float], name: str) -> float:
    return after[name, ""] - before[name, ""]


def _beside_alone(attack: str, figure: str, turn: Turn) -> float:
    return float(turn[attack][figure] / turn[ALONE][figure])


def _table(turns: Sequence[Turn]) -> str:
    def figure(name: str, key: str) -> float:
        return median_of(turns, lambda turn: turn[name][key])

    def ratio(name: str, key: str) -> float:
        return median_of(turns, partial(_beside_alone, name, key))

    rows = []
    for name in (ALONE, *ATTACKS):
        row = [name, f"{figure(name, 'thrown_per_s'):.0f}"]
        for key in FIGURES.values():
            row += [f"{figure(name, key):.2f}", f"{ratio(name, key):.2f}"]
        rows.append([*row, f"{figure(name, 'call_p99_ms'):.1f}"])
    measured = [column for what in FIGURES for column in (f"{what}, ms", "/ alone")]
    head = ["beside", "thrown a second", *measured, "p99 of calls, ms"]
    return f"{markdown_table(head, rows)}\n\nAim: each ratio ≤ {AT_MOST:g}."


if __name__ == "__main__":
    main()
