"""The metrics port, read with Prometheus' own parser."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.handler.door import TIMEOUT, Door


def scrape(door: Door) -> dict[str | tuple[str, str], float]:
    """Values by sample name, or by (name, label value) where there is one label; buckets left out."""
    with urllib.request.urlopen(f"http://{door.addresses.metrics}/metrics", timeout=TIMEOUT) as response:
        text = response.read().decode()
    values: dict[str | tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_bucket") or len(sample.labels) > 1:
                continue
            label = next(iter(sample.labels.values()), None)
            values[sample.name if label is None else (sample.name, label)] = sample.value
    return values
