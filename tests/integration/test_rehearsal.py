"""What a template goes through in advance: it works on the real thing, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent import disk_probe, rehearsal
from agent.core.disk_safety import Marker
from protocol import codec
from tests.support.dockerd import IMAGE, OwnDocker, own_docker


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_the_rehearsal_of_disks_goes_all_the_way_and_leaves_nothing(tmp_path: Path) -> None:
    """Probing, checking, mounting and marking: nothing to complain of, nothing mounted or kept after it."""
    before = disk_probe.mounts()
    with structlog.testing.capture_logs() as logs:
        await rehearsal.of_disks(tmp_path)
    assert not logs
    assert disk_probe.mounts() == before
    assert list(tmp_path.iterdir()) == []


async def test_a_rehearsal_of_disks_that_cannot_be_is_said_and_harms_nothing(tmp_path: Path) -> None:
    """A directory that is not there: a line in the log, and the template goes on."""
    with structlog.testing.capture_logs() as logs:
        await rehearsal.of_disks(tmp_path / "missing")
    assert [line["event"] for line in logs] == ["rehearsal.disks_failed"]


def test_the_rehearsal_of_documents_reads_and_hashes_a_whole_specification() -> None:
    rehearsal.of_documents((Marker,))
    assert codec.from_json(type(rehearsal.SPECIFICATION), codec.to_json(rehearsal.SPECIFICATION)) == (
        rehearsal.SPECIFICATION
    )


@pytest.fixture(scope="module")
def docker() -> Iterator[OwnDocker]:
    with own_docker() as docker:
        yield docker


def said(docker: OwnDocker, *arguments: str) -> str:
    return docker.docker(*arguments).stdout.decode().strip()


@pytest.mark.docker
@pytest.mark.timeout(180)
async def test_the_rehearsal_of_containers_leaves_neither_container_nor_network(docker: OwnDocker) -> None:
    """The engine goes as far as the program that is not there; an image that is not there is said."""
    before = said(docker, "network", "ls", "--quiet")
    events = said(docker, "info", "--format", "{{.SystemTime}}")
    with structlog.testing.capture_logs() as logs:
        await rehearsal.of_containers(docker.engine(), IMAGE)
    assert not [line for line in logs if line["log_level"] == "warning"]
    now = said(docker, "info", "--format", "{{.SystemTime}}")
    told = said(docker, "events", "--since", events, "--until", now, "--format", "{{.Type}} {{.Action}}").splitlines()
    assert {"container create", "network connect", "container destroy", "network destroy"} <= set(told)
    assert said(docker, "ps", "--all", "--quiet") == ""
    assert said(docker, "network", "ls", "--quiet") == before

    with structlog.testing.capture_logs() as logs:
        await rehearsal.of_containers(docker.engine(), "resurgam-no-such-image:1")
    assert [line["event"] for line in logs] == ["rehearsal.containers_failed"]
    assert said(docker, "network", "ls", "--quiet") == before
