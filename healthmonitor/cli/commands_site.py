"""Commands for the monitor itself: up and down on this machine, init for a machine run by systemd."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from healthmonitor.cli import configuration_text, vms
from healthmonitor.cli.client import ApiClient
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.place import API_FILE, SYSTEM_DIRECTORY, TOKEN_FILE, local_directory, read_token
from healthmonitor.cli.screen import Screen
from healthmonitor.cli.session import session_of
from healthmonitor.cli.site import POWERED_OFF, LocalSite, Ports, write_token
from healthmonitor.embedded_nats import EmbeddedNats, write_private
from healthmonitor.nats_cluster import BadCluster, ClusterNats, TlsFiles, parse_machines
from healthmonitor.shipped import NotShipped, systemd_units

STATE_DIRECTORY = Path("/var/lib/resurgam")
RISE_AGAIN_SECONDS = 900.0

site_commands = typer.Typer()


@site_commands.command()
def up(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Copy this configuration in, instead of writing one.")
    ] = None,
    stemcells: Annotated[Path | None, typer.Option(help="Where stemcells are; default: in the directory.")] = None,
    cloud_dir: Annotated[Path | None, typer.Option(help="Where VMs and disks are; default: in the directory.")] = None,
) -> None:
    """Start the embedded nats-server and the health monitor in the background (in .resurgam, or --dir)."""
    session = session_of(context)
    directory = local_directory(session.directory_option, session.environment, session.here)
    site = LocalSite(directory)
    started = site.up(writer(config, stemcells, cloud_dir), session.screen.note)
    if session.screen.as_json:
        session.screen.json({"url": started.url, "directory": str(directory), "did": list(started.lines)})
    for line in started.lines:
        session.screen.say(line)
    _rise_again(site, session.screen, started.url)
    session.screen.say()
    named = f" --dir {directory}" if session.directory_option is not None else ""
    session.screen.say(f"next:  resurgam{named} stemcell list, resurgam{named} deploy FILE, resurgam{named} status")
    session.screen.say(f"logs:  {site.monitor_process.log_file}")


@site_commands.command()
def down(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")] = False,
    keep_vms: Annotated[bool, typer.Option("--keep-vms", help="Leave the VMs running; their agents work on.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Delete VMs, disks and the directory as well.")] = False,
) -> None:
    """End everything `up` started, and the VMs that were made; `up` brings them back with their disks."""
    session = session_of(context)
    directory = local_directory(session.directory_option, session.environment, session.here)
    site = LocalSite(directory)
    screen = session.screen
    if keep_vms and purge:
        raise CliFailure("--keep-vms and --purge contradict each other", ExitCode.USAGE)
    if not site.exists:
        screen.say(f"nothing was started in {directory}")
        if screen.as_json:
            screen.json({"directory": str(directory), "did": []})
        return
    configured = site.configuration_path.is_file()
    made = vms.list_vms(site.configuration_path) if configured and not keep_vms else []
    running = [vm for vm in made if vm.runs]
    if made and (running or purge):
        rows = [(vm.cloud, vm.summary.vm_cid, vm.summary.key, vm.summary.power.value) for vm in made]
        screen.table(("cloud", "vm", "made for", "power"), rows)
    if running or purge:
        what = "Delete these VMs, all their disks and" if purge else "Switch off these VMs and end"
        rest = f"everything in {directory}?" if purge else "the monitor and the bus?"
        screen.confirm(f"{what} {rest}", yes)

    def end() -> None:
        if configured and not keep_vms:
            vms.end_vms(site.configuration_path, purge, screen.note)
            if not purge:
                _note_powered_off(site, [vm.summary.vm_cid for vm in running])

    lines = site.down(end)
    if running:
        lines.insert(1, f"{'deleted' if purge else 'switched off'} {len(running)} VMs")
    if purge:
        site.purge()
        lines.append(f"removed {directory}")
    if screen.as_json:
        screen.json({"directory": str(directory), "did": lines})
    for line in lines:
        screen.say(line)


@site_commands.command()
def init(
    context: typer.Context,
    cluster: Annotated[
        str, typer.Option(metavar="HOST,HOST,HOST", help="Three machines, each with a nats-server: HOST or HOST:PORT.")
    ] = "",
    this: Annotated[str, typer.Option(metavar="HOST", help="Which of them this machine is.")] = "",
    tls: Annotated[
        Path | None, typer.Option(help="A directory with ca.pem, cert.pem and key.pem of this machine.")
    ] = None,
) -> None:
    """Write a commented configuration for a machine where systemd runs the monitor (/etc/resurgam, or --dir).

    With --cluster for one of three machines that survive the loss of any: run it on each, with the same passwords.
    """
    session = session_of(context)
    directory = (session.directory_option or SYSTEM_DIRECTORY).absolute()
    state = STATE_DIRECTORY if directory == SYSTEM_DIRECTORY else directory / "state"
    nats = bus_of(state / "nats", directory / "nats.conf", cluster, this, tls)
    did = []
    try:
        for place in (directory, state, state / "nats", state / "clouds", state / "stemcells"):
            if not place.is_dir():
                place.mkdir(parents=True, mode=0o700)
                did.append(f"made {place}")
        if not nats.configuration_path.exists():
            nats.prepare()
            did.append(f"wrote {nats.configuration_path}")
        write_token(directory / TOKEN_FILE)
        write_private(
            directory / API_FILE,
            json.dumps({"url": "http://127.0.0.1:25923", "token_file": str(directory / TOKEN_FILE)}) + "\n",
        )
        configuration = directory / "healthmonitor.yml"
        if configuration.exists():
            did.append(f"kept {configuration} as it is")
        else:
            write_private(configuration, configuration_text.real_machine(nats, directory, state))
            did.append(f"wrote {configuration}")
    except PermissionError as error:
        raise CliFailure(f"{error.filename}: not allowed", ExitCode.NOT_ALLOWED, "run it with sudo") from None
    if session.screen.as_json:
        session.screen.json({"configuration": str(configuration), "did": did})
        return
    for line in did:
        session.screen.say(line)
    session.screen.say()
    for line in _next_steps(configuration, nats):
        session.screen.say(line)


def bus_of(
    directory: Path, configuration: Path, cluster: str, this: str, tls: Path | None
) -> EmbeddedNats | ClusterNats:
    """The bus of this machine alone, or its part of a cluster."""
    if not cluster:
        if this or tls is not None:
            raise CliFailure("--this and --tls belong to --cluster", ExitCode.USAGE)
        return EmbeddedNats(directory, 4222, configuration)
    try:
        machines, number = parse_machines(cluster, this)
    except BadCluster as error:
        raise CliFailure(str(error), ExitCode.USAGE, "--cluster HOST,HOST,HOST --this HOST") from None
    files = None if tls is None else TlsFiles(*(tls.absolute() / name for name in ("ca.pem", "cert.pem", "key.pem")))
    return ClusterNats(directory, configuration, machines, number, files)


def writer(
    config: Path | None, stemcells: Path | None, cloud_directory: Path | None
) -> Callable[[LocalSite, Ports], str]:
    """What writes the configuration of a new local site."""

    def write(site: LocalSite, ports: Ports) -> str:
        if config is not None:
            try:
                return config.read_text(encoding="utf-8")
            except OSError as error:
                raise CliFailure(f"{config} cannot be read: {error.strerror}", ExitCode.USAGE) from None
        nats = EmbeddedNats(site.directory / "nats", ports.nats)
        return configuration_text.local_site(
            nats,
            ports.api,
            site.directory / TOKEN_FILE,
            (cloud_directory or site.directory / "clouds" / "local").absolute(),
            (stemcells or site.directory / "stemcells").absolute(),
        )

    return write


def _note_powered_off(site: LocalSite, names: list[str]) -> None:
    if names:
        write_private(site.directory / POWERED_OFF, json.dumps(names) + "\n")


def _rise_again(site: LocalSite, screen: Screen, url: str) -> None:
    """VMs that `down` switched off are lost by a person's word: that many at once must not count as a meltdown."""
    note = site.directory / POWERED_OFF
    if not note.is_file():
        return
    count = len(json.loads(note.read_text(encoding="utf-8")))
    api = ApiClient(url, read_token(site.directory / TOKEN_FILE))
    try:
        because = f"`resurgam down` had switched off {count} VMs"
        api.post("/v1/switches/meltdown", {"seconds": RISE_AGAIN_SECONDS, "because": because})
    finally:
        api.close()
    note.unlink()
    screen.say(f"{count} VMs that `down` had switched off are being rebuilt with their disks")


def _next_steps(configuration: Path, nats: EmbeddedNats | ClusterNats) -> list[str]:
    try:
        units = systemd_units()
    except NotShipped as error:
        raise CliFailure(str(error)) from None
    systemctl = shutil.which("systemctl") or "systemctl"
    first = []
    if isinstance(nats, ClusterNats) and nats.this == 0:
        first = [f"  0. copy {nats.directory}/*.password to the other two machines before `resurgam init` there"]
    elif isinstance(nats, ClusterNats):
        first = [f"  0. the files {nats.directory}/*.password must be the same as on {nats.machines[0].host}"]
    return [
        "next:",
        *first,
        f"  1. read {configuration}, and name your clouds there",
        f"  2. copy resurgam-nats.service and resurgam-healthmonitor.service from {units} to /etc/systemd/system",
        f"  3. {systemctl} daemon-reload && {systemctl} enable --now resurgam-nats resurgam-healthmonitor",
        f"  4. resurgam status{'' if os.geteuid() == 0 else '   (with sudo: the token belongs to root)'}",
    ]
