"""Directories behind mounts: of their own, on their disk, never outside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.engine import EngineRefused
from agent.mount_directories import escape_path, prepare
from protocol.ids import ContainerName, DiskName
from protocol.spec import ContainerSpec, Mount, MountKind


def container(*mounts: Mount) -> ContainerSpec:
    return ContainerSpec(ContainerName("db"), "image", mounts=mounts)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/var/lib/x", "var-lib-x"),
        ("/var/lib-x", "var-lib\\x2dx"),
        ("//var//lib/", "var-lib"),
        ("/", "-"),
        ("/.hidden/a b", "\\x2ehidden-a\\x20b"),
        ("/ä", "\\xc3\\xa4"),
    ],
)
def test_escaping_is_systemds(path: str, name: str) -> None:
    """As `systemd-escape --path` says, so that no two targets collide."""
    assert escape_path(path) == name


def test_a_directory_for_each_mount(tmp_path: Path) -> None:
    """Made with mode 0755, one per target; a named directory is shared; asking again changes nothing."""
    spec = container(
        Mount(MountKind.DISK, "data", "/a/b"),
        Mount(MountKind.DISK, "data", "/a-b"),
        Mount(MountKind.DISK, "data", "/c", subdirectory="shared/deep"),
    )
    disks = {DiskName("data"): str(tmp_path)}
    found = prepare(spec, disks)
    assert found == {
        "/a/b": f"{tmp_path}/db/a-b",
        "/a-b": f"{tmp_path}/db/a\\x2db",
        "/c": f"{tmp_path}/shared/deep",
    }
    assert all(os.stat(path).st_mode & 0o777 == 0o755 for path in found.values())
    assert prepare(spec, disks) == found


@pytest.mark.parametrize("subdirectory", ["../x", "a/../../x", "/etc"])
def test_nothing_leads_out_of_the_disk(tmp_path: Path, subdirectory: str) -> None:
    """Neither `..` nor an absolute path."""
    spec = container(Mount(MountKind.DISK, "data", "/a", subdirectory=subdirectory))
    with pytest.raises(EngineRefused, match="out of disk data"):
        prepare(spec, {DiskName("data"): str(tmp_path)})


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    """A container could have written it where another's directory should be."""
    disk, outside = tmp_path / "disk", tmp_path / "outside"
    disk.mkdir()
    outside.mkdir()
    (disk / "db").symlink_to(outside)
    spec = container(Mount(MountKind.DISK, "data", "/a", subdirectory="db"))
    with pytest.raises(EngineRefused, match="leads out of the disk"):
        prepare(spec, {DiskName("data"): str(disk)})


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        (Mount(MountKind.DISK, "other", "/a"), "disk other is not mounted"),
        (Mount(MountKind.DISK, "gone", "/a"), "is not there"),
        (Mount(MountKind.BIND, "/nowhere/at/all", "/a"), "/nowhere/at/all does not exist"),
    ],
)
def test_what_is_missing_is_named(mount: Mount, text: str) -> None:
    """A disk that is not mounted, one whose directory is gone, a host path that is not there."""
    with pytest.raises(EngineRefused, match=text):
        prepare(container(mount), {DiskName("gone"): "/nowhere/disk"})
