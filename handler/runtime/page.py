"""The metrics of a machine with several workers: one page, on which each series says by `worker` whose it is."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.request import ProxyHandler, Request, build_opener

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

TIMEOUT_S = 5.0
_OPENER = build_opener(ProxyHandler({}))  # workers are on this machine
_ACCEPT = {"accept": "application/openmetrics-text; version=1.0.0"}  # with exemplars


def machine_page(addresses: Sequence[str]) -> CollectorRegistry:
    """A registry of what the workers at these addresses count, asked at each scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Workers(addresses))
    return registry


class _Workers(Collector):
    """One that doesn't answer is left out, and `dnc_worker_up` says so."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("dnc_worker_up", "Whether the worker answers.", labels=["worker"])
        families: dict[str, Metric] = {}
        with ThreadPoolExecutor(len(self._addresses) or 1) as threads:
            texts = list(threads.map(_page, self._addresses))
        for worker, text in enumerate(texts):
            up.add_metric([str(worker)], float(bool(text)))
            read = text_string_to_metric_families(text) if text else ()  # type: ignore[no-untyped-call]
            for family in read:
                known = families.setdefault(family.name, family)
                samples = [
                    sample._replace(labels={**sample.labels, "worker": str(worker)}) for sample in family.samples
                ]
                known.samples = samples if known is family else known.samples + samples
        yield from families.values()
        yield up


def _page(address: str) -> str:
    """What a worker shows; empty if it doesn't answer."""
    try:
        with _OPENER.open(Request(f"http://{address}/metrics", headers=_ACCEPT), timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, ValueError):
        return ""
