"""Commands for stemcells, the images that VMs are made from: build, warm, list, delete.

They work on this machine's files; the monitor need not run.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from healthmonitor.cli.events_view import date_and_time
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.screen import Screen
from healthmonitor.cli.session import Session, session_of
from healthmonitor.clouds import stemcell_build
from healthmonitor.clouds.build_tools import BuildFailed
from healthmonitor.clouds.cloud import Cloud, CloudError
from healthmonitor.clouds.qemu import QemuCloud
from healthmonitor.clouds.registry import LOCAL_PROVIDERS, build_cloud, stemcell_directory
from healthmonitor.clouds.stemcell import stored
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.configuration import Configuration
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.units import size_mib

stemcell = typer.Typer(help="The images that VMs are made from.", no_args_is_help=True)

Into = Annotated[Path | None, typer.Option("--into", help="The directory of stemcells; default: the site's.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
Report = Callable[[str, float], None]


@stemcell.command()
def build(
    context: typer.Context,
    name: Name,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A docker-archive tar to bake in; may be repeated.")
    ] = None,
    package: Annotated[list[str] | None, typer.Option("--package", help="A Debian package to add.")] = None,
    into: Into = None,
) -> None:
    """Build a stemcell: Debian with systemd, Docker Engine and the agent. Needs root; what is there is reused."""
    session = session_of(context)
    directory = into or _stemcells_of(session)
    with progress_bar(session.screen, f"stemcell {name}") as report, _failures():
        built = stemcell_build.build(name, directory, images=image or [], packages=package or [], progress=report)
    if session.screen.as_json:
        session.screen.json({"name": name, "digest": built.manifest.digest, "directory": str(built.directory)})
    session.screen.say(f"stemcell {name} is ready ({built.manifest.digest[:12]}) in {directory}")
    session.screen.say(f"next:  resurgam stemcell warm {name}", "dim")


@stemcell.command()
def warm(
    context: typer.Context,
    name: Name,
    cpus: Annotated[int, typer.Option(min=1, max=256)] = 1,
    memory: Annotated[str, typer.Option(help="Such as 512MiB or 2GiB.")] = "1GiB",
    cloud: Annotated[str, typer.Option(help="The cloud to make it for; default: the only one of qemu.")] = "",
) -> None:
    """Make a warm template: new VMs of this size start in a second instead of booting."""
    session = session_of(context)
    built = _qemu_of(session, cloud)
    if not isinstance(built, QemuCloud):
        raise CliFailure(f"cloud {cloud} makes no warm templates", ExitCode.USAGE)
    try:
        size = size_mib(memory)
    except ValueError as error:
        raise CliFailure(f"--memory {memory}: {error}", ExitCode.USAGE) from None
    with progress_bar(session.screen, f"warm template of {name}") as report, _failures():
        key = asyncio.run(built.build_template(name, cpus, size, report))
    if session.screen.as_json:
        session.screen.json({"stemcell": name, "template": key})
    session.screen.say(f"warm template {key} of {name}, {cpus} CPU, {memory}, is ready")


@stemcell.command("list")
def list_stemcells(context: typer.Context, into: Into = None) -> None:
    """The stemcells on this machine."""
    session = session_of(context)
    found = stored(into or _stemcells_of(session))
    if session.screen.as_json:
        session.screen.json(
            {
                "stemcells": [
                    {
                        "name": item.manifest.name,
                        "digest": item.manifest.digest,
                        "built_at": item.manifest.built_at,
                        "versions": dict(item.manifest.versions),
                        "images": list(item.manifest.images),
                    }
                    for item in found
                ]
            }
        )
        return
    if not found:
        session.screen.say("no stemcell yet: `sudo resurgam stemcell build NAME`")
        return
    rows = [
        (
            item.manifest.name,
            item.manifest.digest[:12],
            date_and_time(item.manifest.built_at),
            ", ".join(f"{what} {which}" for what, which in sorted(item.manifest.versions.items())),
            ", ".join(item.manifest.images) or "-",
        )
        for item in found
    ]
    session.screen.table(("name", "digest", "built", "versions", "images"), rows)


@stemcell.command()
def delete(
    context: typer.Context,
    name: Name,
    into: Into = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")] = False,
) -> None:
    """Delete a stemcell with all its builds. VMs that run go on reading theirs until they end."""
    session = session_of(context)
    directory = into or _stemcells_of(session)
    if name not in [item.manifest.name for item in stored(directory)]:
        raise CliFailure(f"there is no stemcell {name!r} in {directory}", ExitCode.USAGE, "resurgam stemcell list")
    session.screen.confirm(f"Delete stemcell {name}? New VMs cannot be made from it any more.", yes)
    shutil.rmtree(directory / name)
    session.screen.say(f"deleted stemcell {name}")


@contextmanager
def progress_bar(screen: Screen, title: str) -> Iterator[Report]:
    """Reports (what, share) as a bar on a terminal, as a line for each new `what` elsewhere."""
    if not screen.err.is_terminal:
        said: list[str] = []

        def line(what: str, share: float) -> None:
            if what not in said:
                said.append(what)
                screen.note(f"{title}: {what} ({share:.0%})")

        yield line
        return
    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=screen.err) as bar:
        task = bar.add_task("", total=1.0, title=title)
        yield lambda what, share: bar.update(task, description=what, completed=share)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except BuildFailed as error:
        raise CliFailure(str(error)) from None
    except CloudError as error:
        raise CliFailure(str(error)) from None


def _configuration_of(session: Session) -> Configuration:
    """The site's configuration; CliFailure when there is no site on this machine."""
    directory = session.place.directory
    path = None if directory is None else directory / "healthmonitor.yml"
    if path is None or not path.is_file():
        raise CliFailure("the site's configuration is not on this machine", ExitCode.USAGE, "name a directory: --into")
    try:
        return load_configuration(path).configuration
    except ManifestErrors as errors:
        lines = tuple(str(errors).splitlines())
        raise CliFailure(f"{path} is not right", ExitCode.USAGE, "correct it", lines) from None


def _stemcells_of(session: Session) -> Path:
    configuration = _configuration_of(session)
    state = Path(configuration.state_dir)
    named = {
        stemcell_directory(cloud, state) for cloud in configuration.clouds.values() if cloud.provider in LOCAL_PROVIDERS
    }
    if len(named) != 1:
        raise CliFailure("which directory of stemcells is meant?", ExitCode.USAGE, "name it: --into DIRECTORY")
    return named.pop()


def _qemu_of(session: Session, name: str) -> Cloud:
    configuration = _configuration_of(session)
    found = {str(key): cloud for key, cloud in configuration.clouds.items() if cloud.provider == "qemu"}
    if name:
        found = {key: cloud for key, cloud in found.items() if key == name}
    if len(found) != 1:
        raise CliFailure(f"clouds of qemu: {', '.join(found) or 'none'}", ExitCode.USAGE, "name one: --cloud NAME")
    return build_cloud(next(iter(found.values())), Path(configuration.state_dir))
