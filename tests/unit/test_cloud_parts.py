"""The pure parts of the providers: ports, settings for guests, options, archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from healthmonitor.clouds import image_archive, initrd, qemu_machine
from healthmonitor.clouds.build_tools import BuildFailed
from healthmonitor.clouds.guest_settings import for_guest, loopback_ports
from healthmonitor.clouds.image_archive import Contents, Healthcheck, ImageConfig, build_archive, tags_of
from healthmonitor.clouds.initrd import Entry, load_order, newc
from healthmonitor.clouds.local_store import LocalStore
from healthmonitor.clouds.qemu import QemuCloud
from healthmonitor.clouds.qemu_machine import Accel, Machine, parse_forward
from healthmonitor.clouds.qemu_template import Templates
from healthmonitor.clouds.registry import build_cloud, option_errors
from healthmonitor.clouds.stemcell import Stemcell, StemcellManifest
from healthmonitor.core.configuration import CloudConfiguration
from healthmonitor.core.located_yaml import ManifestErrors
from protocol import codec
from protocol.ids import AgentId, CloudName, VmCid
from protocol.settings import AgentSettings, BusSettings


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("6379:6379", "tcp:127.0.0.1:6379-:6379"),
        ("127.0.0.1:16379:6379", "tcp:127.0.0.1:16379-:6379"),
        ("0.0.0.0:53:53/udp", "udp:0.0.0.0:53-:53"),
        ("80:8080/tcp", "tcp:127.0.0.1:80-:8080"),
    ],
)
def test_ports_to_forward(text: str, rule: str) -> None:
    """Without an address a port is opened on the loopback only."""
    assert parse_forward(text).rule == rule


@pytest.mark.parametrize("text", ["6379", "0:1", "1:65536", "a:1", "1:2:3", "1:2/sctp", "1:2 -device x", ""])
def test_what_is_no_port_to_forward(text: str) -> None:
    """Each is an error that shows the right form; nothing of it reaches QEMU's command line."""
    with pytest.raises(ValueError, match="expected"):
        parse_forward(text)


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("nats://127.0.0.1:4222", "nats://10.0.2.2:4222"),
        ("nats://user:word@127.0.0.1:4222", "nats://user:word@10.0.2.2:4222"),
        ("tls://localhost:4223", "tls://10.0.2.2:4223"),
        ("nats://[::1]:4222", "nats://10.0.2.2:4222"),
        ("127.0.0.1:4222", "10.0.2.2:4222"),
        ("tls://bus.example:4222", "tls://bus.example:4222"),
        ("nats://192.0.2.7", "nats://192.0.2.7"),
    ],
)
def test_only_loopback_is_rewritten_for_the_guest(url: str, inside: str) -> None:
    """A guest finds this machine's loopback elsewhere; every other address is the operator's."""
    settings = AgentSettings(agent_id=AgentId("a"), bus=BusSettings(urls=(url,)))
    read = codec.from_json(AgentSettings, for_guest(settings, VmCid("vm-1"), "10.0.2.2"))
    assert (read.bus.urls, read.vm_cid) == ((inside,), "vm-1")
    assert for_guest(settings, VmCid("vm-1"), "") != for_guest(settings, VmCid("vm-1"), "")
    assert codec.from_json(AgentSettings, for_guest(settings, VmCid("vm-1"), "")).bus.urls == (url,)


def test_ports_of_the_loopback() -> None:
    """Only the bus on this machine is forwarded to; a url without a port means NATS's own."""
    assert loopback_ports(["nats://127.0.0.1:4333", "tls://bus.example:1", "nats://localhost"]) == {4333, 4222}


def test_settings_have_one_length() -> None:
    """Short or long, they fill what was set aside, and too long is said before a VM is made."""
    assert len(qemu_machine.padded_settings(b"{}")) == qemu_machine.SETTINGS_BYTES
    assert json.loads(qemu_machine.padded_settings(b'{"a": 1}')) == {"a": 1}
    with pytest.raises(ValueError, match="longer"):
        qemu_machine.padded_settings(b"x" * (qemu_machine.SETTINGS_BYTES + 1))


def test_vms_of_one_size_have_the_same_hardware() -> None:
    """Nothing but the place differs, or a template's state would not load."""
    machine = Machine(1, 512, Accel.TCG, Path("/s/vmlinuz"), Path("/s/initrd"))
    here = qemu_machine.arguments(machine, "qemu", Path("/vms/a"))
    there = qemu_machine.arguments(machine, "qemu", Path("/vms/b"))
    assert [word.replace("/vms/a", "/vms/b") for word in here] == there
    assert here != qemu_machine.arguments(
        Machine(2, 512, Accel.TCG, machine.kernel, machine.initrd), "qemu", Path("/vms/a")
    )


async def test_superseded_templates_are_removed(tmp_path: Path) -> None:
    """The current one of a size stays, and those that VMs go back to; other sizes are not touched."""
    store = LocalStore(tmp_path)
    templates = Templates(store, "qemu", "qemu-img", "7.2")
    stemcell = Stemcell(StemcellManifest("debian", "new"), tmp_path)
    machine = Machine(1, 512, Accel.TCG, Path("/s/vmlinuz"), Path("/s/initrd"))
    current = templates.key(machine, stemcell)
    purposes = dict.fromkeys((current, "old", "used"), "debian cpus=1 memory=512 accel=tcg")
    purposes |= {"large": "debian cpus=1 memory=1024 accel=tcg", "other": "web cpus=1 memory=512 accel=tcg"}
    for key, purpose in purposes.items():
        (store.templates / key).mkdir()
        (store.templates / key / "stemcell").write_text(purpose)
    assert await templates.remove_superseded(machine, stemcell, frozenset({"used"})) == ["old"]
    assert {path.name for path in store.templates.iterdir()} == set(purposes) - {"old"}


@pytest.mark.parametrize(
    ("provider", "options", "expected"),
    [
        ("qemu", {"accel": "hvf"}, "clouds.local.accel: 'hvf': expected one of auto, kvm, tcg"),
        ("qemu", {"acel": "tcg"}, "clouds.local.acel: qemu has no such option; did you mean accel?"),
        ("qemu", {"directory": "vms"}, "clouds.local.directory: 'vms': expected an absolute path"),
        ("qemu", {"warm": 3}, "clouds.local.warm: 3: expected one of auto, true, false"),
        ("docker", {"accel": "tcg"}, "clouds.local.accel: docker has no such option; known: directory, stemcells"),
        ("docker", {"network": ["a"]}, "clouds.local.network: ['a']: expected text"),
        ("aws", {}, "clouds.local: provider 'aws' is not there yet; there are qemu, docker"),
    ],
)
def test_wrong_options_are_named(provider: str, options: dict[str, Any], expected: str) -> None:
    """Each has its line and what was expected, and nothing is made."""
    configuration = CloudConfiguration(CloudName("local"), provider, options, dict.fromkeys(options, (7, 5)))
    with pytest.raises(ManifestErrors) as caught:
        build_cloud(configuration, Path("/nowhere"))
    assert expected in str(caught.value)
    if options:
        assert [(error.line, error.column) for error in option_errors(configuration, "hm.yml")] == [(7, 5)]


def test_a_cloud_is_made_where_it_is_told(tmp_path: Path) -> None:
    """Defaults lie below the state directory; options win; YAML's `true` is a word here."""
    configuration = CloudConfiguration(CloudName("local"), "qemu", {"warm": True, "accel": "tcg"})
    cloud = build_cloud(configuration, tmp_path)
    assert isinstance(cloud, QemuCloud)
    assert cloud.name == "local"
    assert (tmp_path / "clouds" / "local" / "vms").is_dir()


def test_an_initial_ram_disk_is_a_cpio_archive() -> None:
    """Headers, names and contents are aligned to four bytes, and the end is marked, as the kernel wants it."""
    archive = newc([Entry("a", 0o100644, b"12345")])
    assert archive[:6] == b"070701"
    assert archive.count(b"070701") == 2
    assert b"TRAILER!!!" in archive
    assert len(archive) % 4 == 0
    assert archive[112:117] == b"12345"  # 110 bytes of header, "a\0", to the next multiple of four
    assert archive == newc([Entry("a", 0o100644, b"12345")])


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """Depth first, each once, without those that are built into the kernel."""
    (tmp_path / "modules.dep").write_text(
        "kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/virtio.ko\n"
        "kernel/virtio.ko: kernel/virtio_ring.ko\nkernel/virtio_ring.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/ext4.ko\n")
    order = load_order(tmp_path, ("ext4", "virtio_blk"))
    assert order == ["kernel/virtio_ring.ko", "kernel/virtio.ko", "kernel/virtio_blk.ko"]
    with pytest.raises(KeyError):
        load_order(tmp_path, ("nothing",))
    with pytest.raises(FileNotFoundError):
        initrd.build(tmp_path)


def _root_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in ("./", "./etc", "./etc/apt", "./bin"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name in ("./bin/tool", "./etc/apt/sources.list", "./dev/null"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uname = 3, 1234, "somebody"
            archive.addfile(entry, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("./bin/also")
        link.type, link.linkname = tarfile.LNKTYPE, "./bin/tool"
        archive.addfile(link)
    return path


def test_an_image_holds_what_was_chosen(tmp_path: Path) -> None:
    """Kept, dropped, linked; the configuration in Docker's words; its name read back; the same bytes each time."""
    rootfs = _root_tar(tmp_path / "root.tar")
    config = ImageConfig(command=("tool",), ports=("80/tcp",), healthcheck=Healthcheck(("CMD", "tool"), 2.0))
    contents = Contents(keep=("bin/*",), links={"bin/sh": "tool"}, directories=("tmp",))
    first = build_archive(rootfs, "demo/tool:1", config, tmp_path / "first.tar", contents)
    second = build_archive(rootfs, "demo/tool:1", config, tmp_path / "second.tar", contents)
    assert first.read_bytes() == second.read_bytes()
    assert tags_of(first) == ("demo/tool:1",)
    with tarfile.open(first) as archive:
        manifest = json.load(_file(archive, "manifest.json"))[0]
        described = json.load(_file(archive, manifest["Config"]))
        with tarfile.open(fileobj=_file(archive, manifest["Layers"][0])) as layer:
            names = {member.name: member for member in layer}
    assert set(names) == {"bin", "bin/tool", "bin/also", "bin/sh", "tmp"}
    assert (names["bin/tool"].mtime, names["bin/tool"].uname, names["bin/also"].linkname) == (0, "", "bin/tool")
    assert described["config"]["Cmd"] == ["tool"]
    assert described["config"]["Healthcheck"]["Interval"] == 2_000_000_000
    assert described["config"]["ExposedPorts"] == {"80/tcp": {}}


def _file(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    member = archive.extractfile(name)
    assert member is not None
    return io.BytesIO(member.read())


def test_what_is_no_image_is_said_to_be_none(tmp_path: Path) -> None:
    """A tar without a manifest, no tar at all, and a tag without a version each have their error."""
    with pytest.raises(BuildFailed, match="docker save"):
        tags_of(_root_tar(tmp_path / "root.tar"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BuildFailed, match="docker save"):
        tags_of(tmp_path / "text")
    with pytest.raises(BuildFailed, match="repository:tag"):
        image_archive.build_archive(tmp_path / "root.tar", "demo", ImageConfig(), tmp_path / "out.tar")
