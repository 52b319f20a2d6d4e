"""The status as people read it. Pure: JSON of /v1/status in, tables and sentences out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from healthmonitor.cli.events_view import clock, date_and_time
from healthmonitor.cli.monitors_view import leader_line, others_line
from healthmonitor.cli.screen import duration, make_table, plain_table, toned

INSTANCE_COLUMNS = ("instance", "state", "verdict", "vm", "containers", "operation")
SPARE_COLUMNS = ("spare", "state", "verdict", "vm", "kind", "age", "images", "why")
CONTAINER_COLUMNS = ("container", "state", "since", "restarts", "why")

Lines = list[RenderableType]


def status_view(status: Mapping[str, Any], now: float, on_terminal: bool) -> RenderableType:
    """Everything at a glance: what holds for all, each deployment, each instance, what wants a person."""
    lines: Lines = [*head_lines(status, now)]
    for deployment in status["deployments"]:
        lines.append(deployment_line(deployment))
    if status["instances"]:
        lines.append(Text())
        lines.append(_table(INSTANCE_COLUMNS, [instance_row(item, now) for item in status["instances"]], on_terminal))
        if left_out := status.get("instances_left_out", 0):
            lines.append(Text(f"… and {left_out} more: `resurgam status DEPLOYMENT`", style="dim"))
    else:
        lines.append(Text("nothing is deployed yet: `resurgam deploy FILE`", style="dim"))
    if status["spares"]:
        lines += [Text(), spares_line(status["spares"])]
    lines += attention_lines(status)
    return Group(*lines)


def head_lines(status: Mapping[str, Any], now: float) -> Lines:
    """Who leads, and what holds for everything; silent about what is as it should be."""
    monitor, switches = status["monitor"], status["switches"]
    lines: Lines = [leader_line(monitor)]
    if (others := others_line(status["monitors"])) is not None:
        lines.append(others)
    if not monitor["bus_connected"]:
        lines.append(Text("The monitor has lost the bus: it can neither hear nor act.", style="bold red"))
    if not monitor["leader"]:
        lines.append(Text(f"This monitor watches; {monitor['leader_id'] or 'nobody'} leads and acts.", style="yellow"))
    for error in status["unreadable"]:
        lines.append(Text(f"Unreadable: {error}", style="bold red"))
    if monitor["cannot_tell"]:
        lines.append(Text(f"Cannot tell: {monitor['cannot_tell']}", style="yellow"))
    if not switches["configured"]:
        lines.append(Text("Resurrection is off in the configuration (resurrector.enabled).", style="yellow"))
    if not switches["resurrection"]:
        lines.append(Text("Resurrection was switched off: `resurgam resurrection on`", style="yellow"))
    if switches["paused_until"] > now:
        by = f" by {switches['paused_by']}" if switches["paused_by"] else ""
        until = date_and_time(switches["paused_until"])
        lines.append(Text(f"Paused{by} until {until}: `resurgam resume`", style="yellow"))
    if switches["meltdown_overridden_until"] > now:
        lines.append(
            Text(
                f"Meltdown overridden by {switches['overridden_by']} until "
                f"{date_and_time(switches['meltdown_overridden_until'])}",
                style="yellow",
            )
        )
    for scope, reason in status["meltdowns"].items():
        lines.append(
            Text(f"Meltdown ({scope}): {reason}: `resurgam meltdown override` lets it go on", style="bold red")
        )
    return lines


def deployment_line(deployment: Mapping[str, Any]) -> Text:
    good, wanted = deployment["instances_good"], deployment["instances"]
    line = Text.assemble((deployment["name"], "bold"), f"  revision {deployment['revision']}, ")
    line.append(f"{good} of {wanted} instances as they should be", style="green" if good == wanted else "yellow")
    if deployment["deleting"]:
        line.append(", being deleted", style="yellow")
    elif deployment["rollout"] not in ("none", "done"):
        line.append(f", rollout: {deployment['rollout']}", style="bold red" if deployment["rollout_error"] else "cyan")
    if deployment["rollout_error"]:
        line.append(f" ({deployment['rollout_error']})", style="bold red")
    return line


def instance_row(item: Mapping[str, Any], now: float) -> tuple[str | Text, ...]:
    containers = item["containers"]
    fine = sum(1 for container in containers if container["fine"])
    wanted = max(len(item["wanted_containers"]), len(containers))
    return (
        Text(item["instance"], style="bold"),
        toned(item["state"], item["tone"]),
        item["verdict"].replace("_", " "),
        vm_words(item),
        toned(f"{fine}/{wanted}", "good" if fine == wanted else "bad"),
        operation_words(item["operation"], now),
    )


def spares_line(spares: Sequence[Mapping[str, Any]]) -> Text:
    ready = sum(1 for spare in spares if spare["state"] == "ready")
    others = [spare for spare in spares if spare["state"] != "ready"]
    line = Text.assemble((f"{ready} spare VM{'' if ready == 1 else 's'}", "bold"), " ready")
    for state in sorted({spare["state"] for spare in others}):
        line.append(f", {sum(1 for spare in others if spare['state'] == state)} {state}", style="cyan")
    if any(spare["error"] for spare in spares):
        line.append("; not all is as it should be: `resurgam spares`", style="yellow")
    return line


def spare_row(spare: Mapping[str, Any], now: float) -> tuple[str | Text, ...]:
    return (
        Text(spare["key"], style="bold"),
        toned(spare["state"], "bad" if spare["error"] else "good" if spare["state"] == "ready" else "busy"),
        spare["verdict"].replace("_", " "),
        spare["vm_cid"] or "(being made)",
        f"{spare['cloud']}: {spare['stemcell']}, {spare['cpus']} CPU, {spare['memory_mib']} MiB",
        duration(max(0.0, now - spare["made_at"])),
        str(len(spare["images"])),
        spare["error"] or (f"taken by {spare['taken_by']}" if spare["taken_by"] else "-"),
    )


def vm_words(item: Mapping[str, Any]) -> str:
    vm = item["vm"]
    return f"{vm['vm_cid'] or '(being made)'} (gen {item['generation']})" if vm else "-"


def operation_words(operation: Mapping[str, Any] | None, now: float) -> str:
    if operation is None:
        return "-"
    words = f"{operation['kind']}: {operation['step']}"
    progress = operation.get("progress")  # of an older monitor: none
    if progress and progress["bytes_total"]:
        words += f" {100.0 * progress['bytes_done'] / progress['bytes_total']:.0f} %"
    if operation["hold"]:
        words += f" [{operation['hold']}]"
    if operation["next_try_at"] > now:
        words += f", next try in {duration(operation['next_try_at'] - now)}"
    return f"{words}, for {duration(max(0.0, now - operation['started_at']))}"


def attention_lines(status: Mapping[str, Any]) -> Lines:
    """What is not as it should be: why, and what to do about it."""
    lines: Lines = []
    for item in status["instances"]:
        if item["tone"] in ("good", "off") or not item["why"]:
            continue
        lines.append(Text.assemble("\n", (item["instance"], "bold"), ": ", item["why"]))
        if item["next"]:
            lines.append(Text(f"  next: {item['next']}"))
    return lines


def instance_view(item: Mapping[str, Any], now: float, on_terminal: bool) -> RenderableType:
    """One instance in full."""
    lines: Lines = [
        Text.assemble((item["instance"], "bold"), "  ", toned(item["state"], item["tone"])),
    ]
    if item["why"]:
        lines.append(Text(f"  {item['why']}"))
    if item["next"]:
        lines.append(Text(f"  next: {item['next']}"))
    facts = [
        ("verdict", item["verdict"].replace("_", " ")),
        ("VM", vm_words(item)),
        ("agent", item["vm"]["agent_id"] if item["vm"] else "-"),
        ("cloud", f"{item['cloud']}, stemcell {item['stemcell']}"),
        ("engine", item["engine"] or "-"),
        ("revision", str(item["revision"])),
    ]
    lines += [Text(f"  {name:<9} {value}") for name, value in facts]
    for disk in item["disks"]:
        used = f", {disk['percent']:.0f} % used" if disk["percent"] is not None else ""
        if disk.get("inode_percent") is not None:
            used += f", {disk['inode_percent']:.0f} % of its inodes"
        if disk.get("full_in_seconds") is not None:
            used += f", full in {duration(disk['full_in_seconds'])} at its present growth"
        said = "; ".join(text for text in (disk["detail"], disk.get("waits", ""), disk.get("grows", "")) if text)
        note = f" ({said})" if said else ""
        lines.append(
            Text(f"  disk      {disk['name']}: {disk['cid'] or '(not made)'}, {disk['size_mib']} MiB{used}{note}")
        )
    rows = [container_row(container) for container in item["containers"]]
    if rows:
        lines += [Text(), _table(CONTAINER_COLUMNS, rows, on_terminal)]
    if item["operation"]:
        lines += [Text(), *operation_lines(item["operation"], now)]
    return Group(*lines)


def container_row(container: Mapping[str, Any]) -> tuple[str | Text, ...]:
    reason = container["reason"].replace("_", " ")
    if container["exit_code"] and reason:
        reason += f" {container['exit_code']}"
    why = ": ".join(part for part in (reason, container["detail"]) if part)
    return (
        container["name"],
        toned(container["state"].replace("_", " "), "good" if container["fine"] else "bad"),
        duration(container["since_seconds"]),
        str(container["restarts"]),
        why or "-",
    )


def operation_lines(operation: Mapping[str, Any], now: float) -> Lines:
    lines: Lines = [Text(f"operation {operation['id']}: {operation_words(operation, now)}", style="bold")]
    lines.append(Text(f"  because   {operation['reason']}"))
    if operation.get("progress"):
        lines.append(Text(f"  progress  {operation['progress']['text']}"))
    for timing in operation["timings"]:
        note = f"  {timing['note']}" if timing["note"] else ""
        lines.append(
            Text(
                f"  {clock(timing['started_at'])}  {timing['step']:<12} {duration(timing['seconds']):>8}{note}",
                style="dim",
            )
        )
    if operation["error"]:
        lines.append(Text(f"  error     {operation['error']} (try {operation['attempts']})", style="red"))
    if operation["what_to_do"]:
        lines.append(Text(f"  next      {operation['what_to_do']}"))
    return lines


def only(status: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same status with one deployment, or one instance, only."""
    return {
        **status,
        "deployments": [item for item in status["deployments"] if item["name"] == name.split("/")[0]],
        "instances": [item for item in status["instances"] if name in (item["deployment"], item["instance"])],
    }


def all_good(status: Mapping[str, Any]) -> bool:
    """Every instance is as it should be, no rollout is under way or failed, and nothing is held back."""
    return all(item["tone"] in ("good", "off") for item in status["instances"]) and all(
        item["rollout"] in ("none", "done") and not item["deleting"] and item["instances_good"] == item["instances"]
        for item in status["deployments"]
    )


def held(status: Mapping[str, Any]) -> list[str]:
    """A sentence for each instance whose operation cannot go on without a person."""
    holds = ("unfenced", "resurrection_disabled", "paused", "meltdown", "budget", "maintenance")
    return [
        f"{item['instance']}: {item['why']}"
        for item in status["instances"]
        if item["operation"] and item["operation"]["hold"] in holds
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], on_terminal: bool) -> RenderableType:
    return make_table(columns, rows) if on_terminal else Text(plain_table(columns, rows))
