"""What a notification says: its subject, and for each incident where, since when, what is being done, what to type.

Law: everything that came from outside goes through `harmless`; the whole fits the outbox.

Does not know: formats. Each channel draws it in its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from healthmonitor.core.deviations import KINDS
from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.notification import Item, Notification, Transition
from healthmonitor.core.notifying.routing import Subject
from healthmonitor.core.notifying.thread import Send
from healthmonitor.core.operator_view import describe_operation
from healthmonitor.core.records import Incident, InstanceRecord, Operation, OperationKind, Severity, Step
from healthmonitor.core.units import MIB, size_text
from protocol.heartbeat import ContainerGlance

DETAIL_IN_TABLE_MAX = 200
TABLE_FROM = 6
"""From so many incidents on they are rows of a table: no log lines, short details."""
EXPLAINS_OTHERS = frozenset({"bus_lost", "cannot_tell", "mass_silence", "meltdown"})
"""What they explain is listed with them: nobody is told of it otherwise."""

_WORDS: Mapping[Transition, str] = {
    Transition.OPENED: "",
    Transition.CHANGED: "changed: ",
    Transition.REPEATED: "still: ",
    Transition.ESCALATED: "nobody acknowledged: ",
    Transition.ACKNOWLEDGED: "acknowledged: ",
    Transition.RESOLVED: "over: ",
    Transition.NOTED: "",
    Transition.DIGEST: "",
    Transition.TEST: "",
}


def notification(
    send: Send,
    item_of: Callable[[Incident], Item],
    explained: Iterable[Incident],
    rows_max: int,
    at: float,
    site: str,
    link: str = "",
) -> Notification:
    """`explained`: incidents that those of `send` inhibit and that nobody else tells of."""
    listed = [*send.incidents, *explained]
    in_table = len(listed) >= TABLE_FROM
    items = tuple(_row(item_of(each)) if in_table else harmless.item(item_of(each)) for each in listed[:rows_max])
    severity = send.thread.severity
    return Notification(
        id=send.id,
        thread=send.thread.id,
        transition=send.transition,
        severity=severity,
        at=at,
        subject=subject(send, severity),
        items=items,
        left_out=max(0, len(listed) - rows_max) + send.left_out,
        site=site,
        link=link,
    )


def subject(send: Send, severity: Severity) -> str:
    """One line: `[critical] still: shop/db/0 is missing`."""
    members = send.thread.members
    tag = "resolved" if send.transition is Transition.RESOLVED else severity.name.lower()
    word = "" if send.transition is Transition.RESOLVED else _WORDS[send.transition]
    if len(members) == 1 and send.incidents:
        incident = send.incidents[0]
        rest = incident.title
        if send.transition is Transition.RESOLVED:
            rest = f"{rest}: {incident.resolution or 'over'}"
        return harmless.line(f"[{tag}] {word}{rest}", harmless.SUBJECT_MAX)
    over = sum(member.over_at is not None for member in members)
    state = f", {over} of them over" if 0 < over < len(members) else ""
    where = Counter(_place_of(member.key) for member in members)
    places = ", ".join(f"{place} ({count})" for place, count in where.most_common(4))
    more = f" and {len(where) - 4} more" if len(where) > 4 else ""
    return harmless.line(
        f"[{tag}] {word}{len(members)} x {kind_in_words(send.thread.kind)}{state}: {places}{more}",
        harmless.SUBJECT_MAX,
    )


def kind_in_words(kind: str) -> str:
    return kind.replace("_", " ")


def item(
    incident: Incident,
    record: InstanceRecord | None,
    operation: Operation | None,
    container: ContainerGlance | None,
    affected: int,
    now: float,
) -> Item:
    """`container`: what its agent last said of the container that the incident is about. `affected`: how many other
    incidents this one explains."""
    facts: dict[str, str] = {}
    if container is not None:
        facts.update(_container_facts(container))
        if record is not None:
            spec = next((each for each in record.group.containers if each.name == container.name), None)
            if spec is not None:
                limit = spec.mem_limit_bytes
                facts["memory limit"] = size_text(limit // MIB) if limit >= MIB else "none"
                facts["image"] = spec.image
    if affected:
        facts["explains"] = f"{affected} more"
    if incident.resolved_at is not None:
        if took := incident.took_seconds(incident.resolved_at):
            facts["lasted"] = duration(took)
    else:
        facts["since"] = f"{duration(max(0.0, now - incident.opened_at))}"
    meaning = KINDS[incident.kind].meaning if incident.kind in KINDS else ""
    if meaning:
        facts["meaning"] = meaning
    return Item(incident, _where(incident, record, operation), _doing(incident, operation, now), facts)


def mended(incident: Incident, operation: Operation | None) -> str:
    """What ended it, when an operation did; "" otherwise."""
    if operation is None or operation.step is not Step.DONE or operation.kind is OperationKind.DELETE:
        return ""
    ended = max((timing.started_at + timing.seconds for timing in operation.timings), default=operation.started_at)
    if ended < incident.opened_at:
        return ""
    how = _MENDED[operation.kind]
    return f"{how} in {duration(max(0.0, ended - operation.started_at))} (operation {operation.id})"


def subject_of(incident: Incident, instance: str, record: InstanceRecord | None) -> Subject:
    """What routes and silences ask about. Of a container's incident the labels are the container's, of others those
    of all containers of the instance."""
    if not instance:
        deployment = incident.subject if incident.kind == "meltdown" and incident.subject != "fleet" else ""
        return Subject(deployment=deployment)
    deployment, group = instance.split("/")[:2]
    labels: dict[str, str] = {}
    if record is not None:
        name = incident.subject.removeprefix(instance).lstrip("/")
        chosen = [each for each in record.group.containers if each.name == name] or record.group.containers
        for container in chosen:
            labels.update(container.labels)
    return Subject(deployment, group, instance, labels)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def _row(told: Item) -> Item:
    clean = harmless.item(replace(told, log_lines=()))
    short = replace(clean.incident, detail=harmless.cut(clean.incident.detail, DETAIL_IN_TABLE_MAX))
    facts = {key: value for key, value in clean.facts.items() if key not in ("meaning", "image")}
    return replace(clean, incident=short, doing=harmless.cut(clean.doing, DETAIL_IN_TABLE_MAX), facts=facts)


def _where(incident: Incident, record: InstanceRecord | None, operation: Operation | None) -> str:
    if record is None:
        return incident.subject
    parts = [incident.subject]
    vm = record.vm
    if operation is not None and operation.old_vm is not None and operation.step is not Step.DONE:
        vm = operation.old_vm
    if vm is not None:
        parts.append(f"VM {vm.vm_cid or 'being created'} (agent {vm.agent_id})")
    parts.append(f"cloud {record.group.cloud}")
    return ", ".join(parts)


def _doing(incident: Incident, operation: Operation | None, now: float) -> str:
    if incident.resolved_at is not None:
        return incident.resolution
    if operation is None or operation.step is Step.DONE:
        return "the agent keeps trying" if incident.kind == "container_not_running" else ""
    words = describe_operation(operation)
    since = duration(max(0.0, now - (operation.step_started_at or operation.started_at)))
    next_step = f"; you may: {words.next_step}" if words.next_step else ""
    return f"{words.word}: {words.why} (for {since}){next_step}"


def _container_facts(container: ContainerGlance) -> Mapping[str, str]:
    facts = {"state": container.state.value.replace("_", " ")}
    if container.reason.value:
        facts["reason"] = container.reason.value.replace("_", " ")
    if container.exit_code is not None:
        facts["exit code"] = str(container.exit_code)
    facts["restarts"] = str(container.restarts)
    return facts


def _place_of(key: str) -> str:
    subject = key.partition(":")[2]
    return subject.split("/")[0]


_MENDED: Mapping[OperationKind, str] = {
    OperationKind.CREATE: "mended by creating its VM",
    OperationKind.RESURRECT: "mended by its resurrection",
    OperationKind.RECREATE: "mended by recreating its VM",
    OperationKind.UPDATE: "mended by an update",
    OperationKind.CHANGE_DISKS: "mended by changing its disks",
    OperationKind.DELETE: "deleted",
}
