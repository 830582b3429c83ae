"""Writes the Grafana dashboard: `python deploy/grafana/generate.py` after each change here.

Prints nothing; the JSON stands beside this file and is checked in, so that Grafana needs no Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.units import BytesIEC, OpsPerSecond, Seconds, Short

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# What every query is narrowed to.
CHOSEN = 'job=~"$job", instance=~"$instance"'
STATS_HEIGHT, PANEL_HEIGHT = 4, 8
STAT_WIDTH, PANEL_WIDTH = 4, 8  # of 24


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the legend of its series; an exemplar leads from a point to its trace."""

    expression: str
    legend: str
    exemplar: bool = False


def rate(counter: str, *labels: str, chosen: str = CHOSEN) -> str:
    """The counter's growth a second, over all chosen servers, by these labels."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (rate({counter}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, *labels: str) -> str:
    """A quantile over all chosen servers, by these labels."""
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', *labels, 'le')})"


def quantiles(histogram: str, *labels: str) -> list[Query]:
    """The median and the 99th percentile."""
    prefix = "".join(f"{{{{{label}}}}} " for label in labels)
    return [
        Query(quantile(0.5, histogram, *labels), f"{prefix}p50"),
        Query(quantile(0.99, histogram, *labels), f"{prefix}p99", exemplar=True),
    ]


def total(gauge: str, *labels: str) -> str:
    """A gauge over all chosen servers, by these labels."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} ({gauge}{{{CHOSEN}}})"


def figure(title: str, unit: str, query: str, description: str, *, red_from: float | None = None) -> stat.Panel:
    """One number."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(STATS_HEIGHT)
        .span(STAT_WIDTH)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(prometheus.Dataquery().expr(query).ref_id("A"))
    )
    steps = [Threshold(value=None, color="green")]
    if red_from is not None:
        steps.append(Threshold(value=red_from, color="red"))
    return panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))


def curves(title: str, unit: str, queries: Sequence[Query], description: str, *, stacked: bool = False) -> Any:
    """Series over time, from zero."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(PANEL_HEIGHT)
        .span(PANEL_WIDTH)
        .fill_opacity(20 if stacked else 0)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    for letter, query in zip("ABCDEF", queries, strict=False):
        target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter)
        panel.with_target(target.exemplar(query.exemplar))
    return panel


def facts(title: str, query: str, description: str) -> table.Panel:
    """The labels of an info metric, one server a line."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(6)
        .span(12)
        .with_target(prometheus.Dataquery().expr(query).instant().format(PromQueryFormat.TABLE).ref_id("A"))
    )


def overview() -> list[Any]:
    return [
        figure("Servers", Short, f"sum(up{{{CHOSEN}}})", "Servers that answer the scrape."),
        figure("Sessions", Short, total("dnc_sessions"), "Sessions alive, wherever their state is."),
        figure("Timesteps / s", OpsPerSecond, rate("dnc_timesteps_total"), "Timesteps applied."),
        figure(
            "p99 of a chunk",
            Seconds,
            quantile(0.99, "dnc_step_duration_seconds"),
            "From call to reply, over all endpoints. See the runbook, DncStepLatencyHigh.",
            red_from=0.5,
        ),
        figure(
            "Refusals / s",
            OpsPerSecond,
            f"{rate('dnc_errors_total')} or vector(0)",
            "Requests refused, for any reason.",
        ),
        figure(
            "Stores down",
            Short,
            f"sum(1 - dnc_store_up{{{CHOSEN}}})",
            "Servers whose last write to the store failed. See the runbook, DncStoreDown.",
            red_from=1,
        ),
    ]


def latency() -> list[Any]:
    return [
        curves(
            "A chunk, by endpoint",
            Seconds,
            quantiles("dnc_step_duration_seconds", "endpoint"),
            "From a chunk's arrival at an endpoint to its reply, whatever its length.",
        ),
        curves(
            "Wait for the first tick",
            Seconds,
            quantiles("dnc_queue_wait_seconds"),
            "From a chunk's arrival to its first tick: what load adds. The autoscaler follows the p99.",
        ),
        curves("Tick", Seconds, quantiles("dnc_tick_duration_seconds"), "One timestep of one tile of rows."),
    ]


def throughput() -> list[Any]:
    batch = "dnc_batch_size"
    return [
        curves(
            "Timesteps",
            OpsPerSecond,
            [Query(rate("dnc_timesteps_total", "instance"), "{{instance}}")],
            "Timesteps applied, by server.",
            stacked=True,
        ),
        curves(
            "Sessions in a tick",
            Short,
            [Query(f"{rate(batch + '_sum')} / {rate(batch + '_count')}", "mean"), *quantiles(batch)],
            "Sessions stepped together: more of them make a timestep cheaper.",
        ),
        curves(
            "Streams and queue",
            Short,
            [Query(total("dnc_streams"), "open streams"), Query(total("dnc_queued_chunks"), "queued chunks")],
            "Open streams, and chunks that wait for their first tick.",
        ),
    ]


def sessions() -> list[Any]:
    return [
        curves(
            "Sessions by tier",
            Short,
            [Query(total("dnc_sessions", "tier"), "{{tier}}")],
            "slot: on the device; host: in the server's memory; store: on disk, or in the shared store.",
            stacked=True,
        ),
        curves(
            "State by tier",
            BytesIEC,
            [Query(total("dnc_session_state_bytes", "tier"), "{{tier}}")],
            "Bytes of session states.",
            stacked=True,
        ),
        curves(
            "Evictions and resets",
            OpsPerSecond,
            [
                Query(rate("dnc_session_evictions_total", "reason"), "evicted: {{reason}}"),
                Query(rate("dnc_resets_total", "scope"), "reset: {{scope}}"),
            ],
            "slot, host: moved down a tier; idle, age: ended. See the runbook, DncMemoryBudgetSpent.",
        ),
    ]


def errors() -> list[Any]:
    return [
        curves(
            "Refusals by reason",
            OpsPerSecond,
            [Query(rate("dnc_errors_total", "reason"), "{{reason}}")],
            "STEP_GAP, SESSION_MOVED and DRAINING are expected: the client library answers them itself.",
        ),
        curves(
            "Replays and recovery",
            OpsPerSecond,
            [
                Query(rate("dnc_steps_replayed_total"), "chunks answered again"),
                Query(rate("dnc_timesteps_recovered_total"), "timesteps replayed from the journal"),
            ],
            "Retries answered from the stored reply, and recovery after a start or an eviction.",
        ),
        curves(
            "Damage",
            Short,
            [
                Query(total("dnc_snapshot_fallbacks_total"), "snapshots passed over"),
                Query(total("dnc_replayed_elsewhere_total"), "replayed by another artifact"),
            ],
            "Since the servers' start. See the runbook, DncSnapshotFallback and DncReplayedElsewhere.",
        ),
    ]


def durability() -> list[Any]:
    return [
        curves(
            "Journal commit",
            Seconds,
            quantiles("dnc_journal_commit_seconds"),
            "One group commit, as durable as the mode promises; every reply waits for one.",
        ),
        curves(
            "Snapshots", Seconds, quantiles("dnc_snapshot_seconds"), "Taking and writing the snapshots of one turn."
        ),
        curves(
            "Store",
            BytesIEC,
            [Query(total("dnc_journal_bytes", "instance"), "{{instance}}")],
            "Bytes that records and snapshots take; measured every 30 seconds.",
            stacked=True,
        ),
    ]


def what_runs() -> list[Any]:
    return [
        facts("Builds", f"dnc_build_info{{{CHOSEN}}}", "Versions. More than one while a roll is under way."),
        facts("Models", f"dnc_model_info{{{CHOSEN}}}", "Which model, which artifact, on which device."),
        curves(
            "Up",
            Short,
            [Query(f"up{{{CHOSEN}}}", "{{instance}} up"), Query(f"dnc_draining{{{CHOSEN}}}", "{{instance}} draining")],
            "Servers that answer, and servers that are leaving.",
        ),
    ]


def models() -> list[Any]:
    chunks = rate("dnc_model_chunks_total", "model")
    return [
        curves(
            "Sessions by model",
            Short,
            [Query(total("dnc_model_sessions", "model"), "{{model}}")],
            "Sessions alive, wherever their state is.",
            stacked=True,
        ),
        curves(
            "Timesteps by model",
            OpsPerSecond,
            [Query(rate("dnc_model_timesteps_total", "model"), "{{model}}")],
            "Applied.",
            stacked=True,
        ),
        curves(
            "Mean latency by model",
            Seconds,
            [Query(f"{rate('dnc_model_step_seconds_total', 'model')} / {chunks}", "{{model}}")],
            "From a chunk's arrival at an endpoint to its reply.",
        ),
    ]


def variables() -> list[Any]:
    def label(name: str, query: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(name)
            .datasource(SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(include_all=True)
            .multi(multi=True)
        )

    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        label("job", "label_values(dnc_build_info, job)"),
        label("instance", 'label_values(dnc_build_info{job=~"$job"}, instance)'),
    ]


def build() -> dashboard.Dashboard:
    """The dashboard; its rows answer in order: is it well, fast, full, safe, and what is it."""
    board = (
        dashboard.Dashboard("dnc-serve")
        .uid("dnc-serve")
        .description("Sessions of sequence models that remember. Alerts: docs/runbook.md.")
        .tags(["dnc-serve"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    for variable in variables():
        board.with_variable(variable)
    rows = {
        "Overview": overview(),
        "Latency": latency(),
        "Throughput": throughput(),
        "Sessions and memory": sessions(),
        "Errors and recovery": errors(),
        "Durability": durability(),
        "Models": models(),
        "What runs": what_runs(),
    }
    # Without ids of its own in the file, Grafana numbers panels anew at each load, and links to them break.
    ids = count(1)
    for title, panels in rows.items():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
    return board


def rendered() -> str:
    """The dashboard as Grafana reads it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(rendered())
