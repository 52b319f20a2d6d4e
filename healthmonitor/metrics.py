"""What Prometheus is told of the monitor: read from the fleet and the judgement when it asks, kept nowhere else.

Law: no label has more values than there are verdicts, severities or deployments: agents are not labels.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from healthmonitor.core.deviations import KINDS
from healthmonitor.core.records import SpareState
from healthmonitor.image_store import StoreFigures
from healthmonitor.monitor import Monitor

DISK_KINDS = tuple(kind for kind in KINDS if kind.startswith("disk_"))


class MonitorMetrics(Collector):
    """Register it with a `prometheus_client.CollectorRegistry`; `collect` must be called from the monitor's loop."""

    def __init__(
        self,
        monitor: Monitor,
        is_leader: Callable[[], bool],
        monitors: Callable[[], Mapping[str, int]] = dict,
        image_store: Callable[[], StoreFigures] = StoreFigures,
    ) -> None:
        self._monitor = monitor
        self._is_leader = is_leader
        self._monitors = monitors
        self._image_store = image_store
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: the registry would collect before there is anything to tell."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        monitor = self._monitor
        fleet, judgement, counters = monitor.fleet, monitor.judgement, monitor.fleet.counters
        verdicts = GaugeMetricFamily("resurgam_vms", "Expected VMs by verdict", labels=["verdict"])
        for verdict, count in fleet.verdicts().items():
            verdicts.add_metric([verdict.value], count)
        yield verdicts
        yield _gauge("resurgam_agents_known", "Agents that are expected or heard", len(fleet))
        yield _gauge("resurgam_vms_missing", "VMs judged missing, to be rebuilt", len(judgement.missing))
        yield _gauge("resurgam_cannot_tell", "1 while silence proves nothing", bool(judgement.cannot_tell))
        spares = GaugeMetricFamily("resurgam_spares", "Spare VMs by state", labels=["state"])
        states = Count(spare.state for spare in monitor.spares.values())
        for state in SpareState:
            spares.add_metric([state.value], states[state])
        yield spares
        meltdowns = GaugeMetricFamily("resurgam_meltdown", "1 for each scope in meltdown", labels=["scope"])
        for scope in judgement.meltdowns:
            meltdowns.add_metric([scope], 1)
        yield meltdowns
        incidents = GaugeMetricFamily("resurgam_incidents_open", "Open incidents", labels=["severity"])
        severities = Count(incident.severity for incident in monitor.open_incidents().values())
        for severity, count in severities.items():
            incidents.add_metric([severity.name.lower()], count)
        yield incidents
        kinds = Count(incident.kind for incident in monitor.open_incidents().values())
        disks = GaugeMetricFamily("resurgam_disks_reported", "Disks with something the matter", labels=["what"])
        for kind in DISK_KINDS:
            disks.add_metric([kind.removeprefix("disk_")], kinds[kind])
        yield disks
        yield _gauge("resurgam_leader", "1 where this monitor acts", self._is_leader())
        monitors = GaugeMetricFamily("resurgam_monitors", "Monitors of this bus by what they do", labels=["doing"])
        for doing, count in self._monitors().items():
            monitors.add_metric([doing.replace(" ", "_")], count)
        yield monitors
        yield _gauge("resurgam_loop_lag_seconds", "How late the last turn came", monitor.lag_seconds)
        yield _gauge("resurgam_turn_longest_seconds", "The longest turn so far", monitor.longest_turn_seconds)
        lately = monitor.longest_turn_lately_seconds
        yield _gauge("resurgam_turn_longest_lately_seconds", "The longest turn of the last minute or two", lately)
        yield _counter("resurgam_turn_seconds", "Time spent in turns", monitor.turn_seconds)
        canary = monitor.canary_seconds
        yield _gauge("resurgam_canary_seconds", "How long its own heartbeat was last on its way to it", canary)
        yield _gauge("resurgam_turn_age_seconds", "Since the last turn", self._loop.time() - monitor.last_turn_at)
        channels = monitor.alerting.channels()
        yield _gauge(
            "resurgam_channels_failing", "Channels that cannot deliver", sum(each.failing for each in channels)
        )
        waiting = sum(each.waiting for each in channels)
        yield _gauge("resurgam_notifications_waiting", "Notifications that no receiver has taken yet", waiting)
        yield _counter("resurgam_turns", "Turns of the loop", monitor.turns)
        yield _counter("resurgam_notifications_dropped", "Lines were full", monitor.notifier.overflowed)
        heartbeats = CounterMetricFamily("resurgam_heartbeats", "Heartbeats received", labels=["what"])
        for what, count in (
            ("received", counters.heartbeats),
            ("late", counters.late),
            ("replayed", counters.replayed),
            ("malformed", counters.malformed),
            ("refused", counters.refused),
        ):
            heartbeats.add_metric([what], count)
        yield heartbeats
        yield _counter("resurgam_questions_to_agents", "Active checks begun", counters.asked)
        yield _counter("resurgam_questions_to_clouds", "VMs looked at in their cloud", counters.observed)
        store = self._image_store()
        yield _gauge("resurgam_image_store_images", "Images in the store", store.images)
        yield _gauge("resurgam_image_store_used_bytes", "What the store holds", store.used_bytes)
        yield _gauge("resurgam_image_store_limit_bytes", "What it may hold", store.limit_bytes)
        yield _counter("resurgam_image_store_uploaded_bytes", "Received by this monitor", store.uploaded_bytes)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))
