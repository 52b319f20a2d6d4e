"""Records as the API shows them: plain dicts, one function a thing. Pure.

Law: what stands here is a public interface: names stay, values keep their meaning, new keys may come. No secret is in
it: container environments and cloud properties are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from healthmonitor.core.fleet import AgentView
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.operator_view import Tone, container_is_fine, describe, what_to_do
from healthmonitor.core.records import (
    DeploymentRecord,
    Incident,
    InstanceRecord,
    Operation,
    Step,
    Switches,
)
from healthmonitor.journal import EventEntry
from protocol.heartbeat import ContainerReport, DiskReport, Heartbeat


def instance_view(
    record: InstanceRecord, verdict: Verdict, heartbeat: Heartbeat | None, operation: Operation | None
) -> dict[str, Any]:
    state = describe(record, verdict, heartbeat, operation)
    extension = heartbeat.resurgam if heartbeat is not None else None
    reports = {report.name: report for report in extension.disks} if extension else {}
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
            }
            for disk in record.disks
        ],
        "vitals": heartbeat.vitals if heartbeat is not None else None,
        "operation": None if under_way is None else operation_view(under_way),
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
        return {"state": "unknown", "percent": None, "detail": ""}
    return {"state": report.state.value, "percent": report.percent, "detail": report.detail}


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


def deployment_view(record: DeploymentRecord, instances: list[dict[str, Any]]) -> dict[str, Any]:
    """`instances`: views of those that exist. Those not made yet count as wanted and not good."""
    mine = [item for item in instances if item["deployment"] == record.name]
    wanted = 0 if record.deleting else sum(group.instances for group in record.manifest.groups)
    good = sum(1 for item in mine if item["tone"] in (Tone.GOOD.value, Tone.OFF.value) and not item["deleting"])
    return {
        "name": record.name,
        "revision": record.revision,
        "rollout": record.rollout.value,
        "rollout_error": record.rollout_error,
        "deleting": record.deleting,
        "delete_disks": record.delete_disks,
        "deployed_by": record.deployed_by,
        "deployed_at": record.deployed_at,
        "instances": max(wanted, len(mine)),
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


def meltdowns_view(meltdowns: Mapping[str, str]) -> dict[str, str]:
    return dict(meltdowns)
