"""Commands that change what should be: plan, deploy, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.following import follow_deployment, last_sequence
from healthmonitor.cli.manifest_upload import upload
from healthmonitor.cli.screen import Screen
from healthmonitor.cli.session import session_of

deploying = typer.Typer()

File = Annotated[Path, typer.Argument(metavar="FILE", help="The manifest.")]
Variables = Annotated[
    list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A variable of the manifest; may be repeated.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")]
Follow = Annotated[
    bool, typer.Option("--follow/--no-follow", "-f", help="Show what happens, and end when it is done (or failed).")
]

Migrate = Annotated[
    bool,
    typer.Option("--migrate", help="Disks may be made smaller: copied to new ones, with containers stopped."),
]

_STYLES = {
    "create": "green",
    "delete": "bold red",
    "recreate": "yellow",
    "restart": "yellow",
    "migrate": "yellow",
    "resize": "cyan",
}


@deploying.command()
def plan(context: typer.Context, file: File, var: Variables = None, migrate: Migrate = False) -> None:
    """Show what deploying FILE would change. Changes nothing."""
    session = session_of(context)
    reply = session.api.post("/v1/plan", {**upload(file, var or []), "migrate": migrate})
    if session.screen.as_json:
        session.screen.json(reply)
    else:
        show_plan(session.screen, reply["plan"])


@deploying.command()
def deploy(
    context: typer.Context,
    file: File,
    var: Variables = None,
    migrate: Migrate = False,
    yes: Yes = False,
    follow: Follow = False,
    because: Annotated[str, typer.Option("--because", help="Why; kept with the event.")] = "",
) -> None:
    """Make what FILE says so: shows the plan, asks, and rolls it out, canaries first."""
    session = session_of(context)
    body = {**upload(file, var or []), "migrate": migrate}
    planned = session.api.post("/v1/plan", body)
    found = planned["plan"]
    if not session.screen.as_json:
        show_plan(session.screen, found)
    if found["empty"]:
        if session.screen.as_json:
            session.screen.json(planned)
        return
    if found["refusals"]:
        raise CliFailure(f"{file} cannot be deployed on what is there", ExitCode.FAILED, "", tuple(found["refusals"]))
    session.screen.confirm(f"Deploy {found['deployment']}?", yes)
    after = last_sequence(session)
    reply = session.api.put(
        f"/v1/deployments/{found['deployment']}", {**body, "because": because, "if_revision": planned["revision"]}
    )
    if session.screen.as_json:
        session.screen.json(reply)
    else:
        session.screen.say(reply["text"])
    if follow:
        follow_deployment(session, found["deployment"], reply["revision"], after)
    else:
        session.screen.note(f"next:  resurgam status {found['deployment']} --watch")


@deploying.command()
def delete(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT")],
    disks: Annotated[bool, typer.Option("--disks", help="Delete its disks and all that is on them.")] = False,
    yes: Yes = False,
    follow: Follow = False,
    because: Annotated[str, typer.Option("--because", help="Why; kept with the event.")] = "",
) -> None:
    """Delete a deployment: containers are stopped in order, VMs deleted, disks kept unless --disks."""
    session = session_of(context)
    name = session.deployment(deployment)
    instances = [item for item in session.status(name)["instances"] if item["deployment"] == name]
    rows = [_deletion_row(item, disks) for item in instances]
    session.screen.table(("instance", "vm", "disks"), rows)
    what = "and every disk, with all that is on them" if disks else "its disks are kept"
    session.screen.confirm(f"Delete {name} with {len(instances)} VMs, {what}?", yes)
    after = last_sequence(session)
    reply = session.api.delete(f"/v1/deployments/{name}", disks=disks, because=because)
    if session.screen.as_json:
        session.screen.json(reply)
    else:
        session.screen.say(reply["text"])
    if follow:
        follow_deployment(session, name, 0, after)


def show_plan(screen: Screen, plan: Any) -> None:
    """Each change on a line, what it is made of below it, and the sum at the end."""
    if plan["empty"]:
        screen.say(f"{plan['deployment']} is already what the manifest says: nothing to do", "green")
        return
    for change in plan["changes"]:
        style = _STYLES.get(change["verb"], "")
        screen.console.print(Text.assemble((f"{change['verb']:<9}", style), change["subject"]))
        for line in change["details"]:
            screen.console.print(Text(f"          {line}", style="dim"))
    screen.say(plan["summary"], "bold")
    for warning in plan["warnings"]:
        screen.console.print(Text(f"note: {warning}", style="yellow"))


def _deletion_row(item: Any, disks: bool) -> tuple[str, str, str]:
    names = ", ".join(disk["name"] for disk in item["disks"]) or "-"
    return item["instance"], (item["vm"] or {}).get("vm_cid") or "-", f"{names} ({'deleted' if disks else 'kept'})"
