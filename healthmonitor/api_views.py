"""Records as the API shows them: plain dicts, one function a thing. Pure.

Law: what stands here is a public interface: names stay, values keep their meaning, new keys may come. No secret is in
it: container environments and cloud properties are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.disk_planning import growth_text
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.operator_view import container_is_fine, describe, what_to_do
from healthmonitor.core.progress import Progress
from healthmonitor.core.records import (
    DeploymentRecord,
    Incident,
    InstanceRecord,
    Operation,
    SpareRecord,
    Step,
    Switches,
)
from healthmonitor.journal import EventEntry
from protocol.heartbeat import ContainerReport, DiskReport, Heartbeat


def instance_view(
    record: InstanceRecord,
    verdict: Verdict,
    heartbeat: Heartbeat | None,
    operation: Operation | None,
    progress: Progress | None = None,
    full_in_seconds: Callable[[str], float | None] = lambda disk: None,
) -> dict[str, Any]:
    """`progress`: how far the operation's present step is, where that takes long. `full_in_seconds`: of a disk, at its
    present growth."""
    state = describe(record, verdict, heartbeat, operation)
    extension = heartbeat.resurgam if heartbeat is not None else None
    reports = {report.name: report for report in extension.disks} if extension else {}
    growing = {disk.name: growth_text(disk.grow) for disk in record.group.disks if disk.grow is not None}
    under_way = operation if operation is not None and operation.step is not Step.DONE else None
    return {
        "instance": record.instance,
        "deployment": record.deployment,
        "group": record.group.name,
        "index": record.index,
        "state": state.word,
        "tone": state.tone.value,
        "why": state.why,
        "next": state.next_step,
        "verdict": verdict.value,
        "wanted": record.wanted.value,
        "ignore": record.ignore,
        "deleting": record.deleting,
        "generation": record.generation,
        "revision": record.revision,
        "deployment_revision": record.deployment_revision,
        "cloud": record.group.cloud,
        "stemcell": record.group.stemcell,
        "vm": None
        if record.vm is None
        else {"vm_cid": record.vm.vm_cid, "agent_id": record.vm.agent_id, "key": record.vm.key},
        "engine": extension.engine.value if extension else "",
        "wanted_containers": [container.name for container in record.group.containers],
        "containers": [container_view(report) for report in extension.containers] if extension else [],
        "disks": [
            {
                "name": disk.name,
                "cid": disk.cid,
                "size_mib": disk.size_mib,
                **disk_report_view(reports.get(disk.name)),
                "full_in_seconds": full_in_seconds(disk.name),
                "waits": disk.why or disk.given_up_why,
                "grows": growing.get(disk.name, ""),
            }
            for disk in record.disks
        ],
        "vitals": heartbeat.vitals if heartbeat is not None else None,
        "operation": None if under_way is None else {**operation_view(under_way), "progress": progress_view(progress)},
    }


def container_view(report: ContainerReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "state": report.state.value,
        "fine": container_is_fine(report),
        "reason": report.reason.value,
        "restarts": report.restarts,
        "exit_code": report.exit_code,
        "since_seconds": report.since_seconds,
        "detail": report.detail,
        "container_id": report.container_id,
        "spec_hash": report.spec_hash,
    }


def disk_report_view(report: DiskReport | None) -> dict[str, Any]:
    if report is None:
        return {
            "state": "unknown",
            "percent": None,
            "inode_percent": None,
            "filesystem_mib": None,
            "errors": None,
            "detail": "",
        }
    return {
        "state": report.state.value,
        "percent": report.percent,
        "inode_percent": report.inode_percent,
        "filesystem_mib": report.size_mib,
        "errors": report.errors,
        "detail": report.detail,
    }


def operation_view(operation: Operation) -> dict[str, Any]:
    return {
        "id": operation.id,
        "instance": operation.instance,
        "kind": operation.kind.value,
        "step": operation.step.value,
        "hold": operation.hold.value,
        "reason": operation.reason,
        "error": operation.error,
        "attempts": operation.attempts,
        "started_at": operation.started_at,
        "step_started_at": operation.step_started_at,
        "next_try_at": operation.next_try_at,
        "what_to_do": what_to_do(operation),
        "old_vm": None if operation.old_vm is None else operation.old_vm.vm_cid,
        "fence_proof": operation.fence_proof,
        "proof_by": operation.proof_by,
        "vms_lost": operation.vms_lost,
        "timings": [
            {"step": timing.step.value, "started_at": timing.started_at, "seconds": timing.seconds, "note": timing.note}
            for timing in operation.timings
        ],
    }


def progress_view(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    return {
        "text": progress.text,
        "phase": progress.phase,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "bytes_per_second": progress.bytes_per_second,
        "seconds_left": progress.seconds_left,
    }


def deployment_view(record: DeploymentRecord, existing: int, good: int) -> dict[str, Any]:
    """`existing`, `good`: its instances, and those that are as they should be. Those not made yet count as wanted."""
    wanted = 0 if record.deleting else sum(group.instances for group in record.manifest.groups)
    return {
        "name": record.name,
        "revision": record.revision,
        "rollout": record.rollout.value,
        "rollout_error": record.rollout_error,
        "deleting": record.deleting,
        "delete_disks": record.delete_disks,
        "deployed_by": record.deployed_by,
        "deployed_at": record.deployed_at,
        "instances": max(wanted, existing),
        "instances_good": good,
    }


def incident_view(incident: Incident) -> dict[str, Any]:
    return {
        "key": incident.key,
        "kind": incident.kind,
        "subject": incident.subject,
        "severity": incident.severity.name.lower(),
        "title": incident.title,
        "detail": incident.detail,
        "opened_at": incident.opened_at,
        "updated_at": incident.updated_at,
        "resolved_at": incident.resolved_at,
        "resolution": incident.resolution,
        "lasted_seconds": None if incident.resolved_at is None else incident.took_seconds(incident.resolved_at),
        "inhibited_by": incident.inhibited_by,
        "next_step": incident.next_step,
    }


def event_view(entry: EventEntry) -> dict[str, Any]:
    event = entry.event
    return {
        "sequence": entry.sequence,
        "at": event.at,
        "kind": event.kind,
        "subject": event.subject,
        "text": event.text,
        "fields": dict(event.fields),
    }


def switches_view(switches: Switches, configured: bool) -> dict[str, Any]:
    """`configured`: what the configuration file says of resurrection; both must be on."""
    return {
        "resurrection": switches.resurrection,
        "configured": configured,
        "paused_until": switches.paused_until,
        "paused_by": switches.paused_by,
        "meltdown_overridden_until": switches.meltdown_overridden_until,
        "overridden_by": switches.overridden_by,
    }


def stranger_view(stranger: AgentView) -> dict[str, Any]:
    return {
        "agent_id": stranger.agent,
        "verdict": stranger.verdict.value,
        "known_seconds": stranger.known_seconds,
        "silent_seconds": stranger.silent_seconds if math.isfinite(stranger.silent_seconds) else None,
    }


def spare_view(spare: SpareRecord, verdict: Verdict) -> dict[str, Any]:
    return {
        "key": spare.key,
        "state": spare.state.value,
        "verdict": verdict.value,
        "cloud": spare.pool.cloud,
        "stemcell": spare.pool.stemcell,
        "stemcell_version": spare.version,
        "cpus": spare.pool.cpus,
        "memory_mib": spare.pool.memory_mib,
        "vm_cid": spare.vm_cid,
        "agent_id": spare.agent_id,
        "made_at": spare.made_at,
        "images": list(spare.images),
        "taken_by": spare.taken_by,
        "error": spare.error or spare.images_error,
    }


def meltdowns_view(meltdowns: Mapping[str, str]) -> dict[str, str]:
    return dict(meltdowns)
