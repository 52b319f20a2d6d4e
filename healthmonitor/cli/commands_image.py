"""Commands about the image store: container images kept on the bus, so that no registry is needed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import docker
import docker.errors
import requests.exceptions
import typer

from healthmonitor.cli.commands_act import Because, Yes, print_answer
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.image_file import PLATFORM, BadImageFile, FileImage, ImageFile
from healthmonitor.cli.screen import duration, parse_duration
from healthmonitor.cli.session import Session, session_of
from protocol.images import repository_of

image = typer.Typer(help="Container images kept on the bus: agents load them without a registry.", no_args_is_help=True)

MIB = 1024 * 1024
SAVE_SECONDS = 600


@image.command("push")
def push(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE.tar|IMAGE", help="What `docker save` wrote, an OCI layout "
        "as a tar, or an image of this machine's Docker Engine.")],
    names: Annotated[list[str] | None, typer.Option("--as", help="Store it under this name (repeatable).")] = None,
    platform: Annotated[str, typer.Option(help="Which image of an OCI index.")] = PLATFORM,
) -> None:  # fmt: skip
    """Store an image. What the store has of it already is not sent again, also after an interruption."""
    session = session_of(context)
    with _archive(session, source) as (path, more_names):
        try:
            with ImageFile(path) as file:
                found = file.images(platform)
                if names and len(found) > 1:
                    raise CliFailure(f"{source} holds {len(found)} images, so --as is not possible", ExitCode.USAGE)
                for each in found:
                    references = tuple(names) if names else tuple(dict.fromkeys((*each.references, *more_names)))
                    if not references:
                        raise CliFailure(f"the image in {source} has no name", ExitCode.USAGE, "add --as NAME:TAG")
                    print_answer(session, _push(session, file, each, references))
        except BadImageFile as error:
            raise CliFailure(str(error), ExitCode.USAGE) from None


@image.command("list")
def list_images(context: typer.Context) -> None:
    """What is in the store, who uses it, and what deployments name that is not in it."""
    session = session_of(context)
    reply = session.api.get("/v1/images")
    if session.screen.as_json:
        session.screen.json(reply)
        return
    now = time.time()
    session.screen.table(
        ("image", "id", "size", "layers", "pushed", "used by"),
        [
            (
                ", ".join(name for name in each["names"] if "@" not in name) or "(no name)",
                each["id"].removeprefix("sha256:")[:12],
                _mib(each["size_bytes"]),
                str(each["layers"]),
                f"{duration(now - each['pushed_at'])} ago",
                ", ".join(each["used_by"][:3]) + (" …" if len(each["used_by"]) > 3 else ""),
            )
            for each in reply["images"]
        ],
    )
    session.screen.say(f"{_mib(reply['used_bytes'])} of {_mib(reply['limit_bytes'])} used", "dim")
    lacking = [each["image"] for each in reply["needed"] if not each["in_store"]]
    if lacking:
        session.screen.say(f"not in the store, and named by deployments: {', '.join(lacking)}", "dim")


@image.command("delete")
def delete(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="IMAGE|ID")],
    force: Annotated[bool, typer.Option("--force", help="Although it is used; needs --because.")] = False,
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Take an image out of the store: a name, and the image with its last name; with an id, all its names."""
    session = session_of(context)
    session.screen.confirm(f"Delete {name} from the image store?", yes)
    body = {"image": name, "force": force, "because": because}
    print_answer(session, session.api.post("/v1/images/delete", body))


@image.command("prune")
def prune(
    context: typer.Context,
    older_than: Annotated[str, typer.Option(help="Only what was pushed longer ago than this.")] = "24h",
    everything: Annotated[bool, typer.Option("--all", help="However lately it was pushed.")] = False,
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Delete images that no deployment and no instance names, and what unfinished pushes left behind."""
    session = session_of(context)
    body: dict[str, Any] = {"older_than_seconds": 0.0 if everything else parse_duration(older_than), "because": because}
    would = session.api.post("/v1/images/prune", {**body, "dry_run": True})
    session.screen.note(would["text"])
    for name in would["references"]:
        session.screen.note(f"  {name}")
    session.screen.confirm("Delete these from the image store?", yes)
    print_answer(session, session.api.post("/v1/images/prune", body))


def _push(session: Session, file: ImageFile, found: FileImage, references: tuple[str, ...]) -> Any:
    blobs = found.blobs
    missing = session.api.post("/v1/images/missing", {"blobs": list(blobs)})["missing"]
    for digest in missing:
        blob = blobs[digest]
        session.screen.note(f"sending {digest[7:19]}, {_mib(blob.size_bytes)}")
        session.api.upload(f"/v1/images/blobs/{digest}", file.content(blob), blob.size_bytes)
    body = {
        "config": found.config.digest,
        "layers": [layer.digest for layer in found.layers],
        "references": list(references),
    }
    return session.api.post("/v1/images", body)


@contextmanager
def _archive(session: Session, source: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file itself, or a temporary one with an image of this machine's engine; and names by digest that it has."""
    if Path(source).is_file():
        yield Path(source), ()
        return
    if source.endswith((".tar", ".tar.gz", ".tgz")) or os.sep == source[:1]:
        raise CliFailure(f"there is no file {source}", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix="resurgam-image-") as directory:
        path = Path(directory, "image.tar")
        yield path, _saved(source, path)


def _saved(name: str, path: Path) -> tuple[str, ...]:
    try:
        client = docker.from_env(timeout=SAVE_SECONDS)
        found = client.images.get(name)
        with path.open("wb") as file:
            for piece in found.save():
                file.write(piece)
        if str(found.id).removeprefix("sha256:").startswith(name.removeprefix("sha256:")):
            return tuple(str(each) for each in found.tags)
        digests = found.attrs.get("RepoDigests") or ()
        return (name, *(str(each) for each in digests if repository_of(str(each)) == repository_of(name)))
    except docker.errors.ImageNotFound:
        raise CliFailure(
            f"{name} is neither a file nor an image of this machine's Docker Engine",
            ExitCode.USAGE,
            f"docker pull {name}, or name a file that docker save wrote",
        ) from None
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise CliFailure(f"this machine's Docker Engine did not give {name}: {error}") from None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes < 10 * MIB else f"{size_bytes // MIB} MiB"
