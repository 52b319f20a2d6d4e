"""Where settings come from, in which order, and what is said when they are wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import settings_sources
from agent.settings_sources import ConfigDriveSource, FileSource, FwCfgSource, SettingsError, find, parse
from agent.store import Store
from protocol import codec
from protocol.ids import AgentId
from protocol.settings import AgentSettings, BusSettings

SETTINGS = AgentSettings(AgentId("agent-1"), BusSettings(urls=("nats://10.0.0.1:4222",)))
RAW = codec.to_json(SETTINGS)


def raw_of(agent: str) -> bytes:
    return codec.to_json(AgentSettings(AgentId(agent), SETTINGS.bus))


class Fixed:
    def __init__(self, name: str, raw: bytes | None) -> None:
        self.name = name
        self._raw = raw

    async def read(self) -> bytes | None:
        return self._raw


async def test_the_first_source_that_has_settings_wins() -> None:
    """The order is the order of the list; empty-handed sources are passed over."""
    found = await find([Fixed("file", None), Fixed("fw_cfg", raw_of("b")), Fixed("drive", raw_of("c"))], None)
    assert (found.settings.agent_id, found.source) == ("b", "fw_cfg")


async def test_a_broken_source_is_not_passed_over(tmp_path: Path) -> None:
    """Half a file must not make the VM somebody else by the next source, or by the copy."""
    copy = Store(tmp_path).document("settings", AgentSettings)
    copy.save(SETTINGS)
    with pytest.raises(SettingsError, match="file"):
        await find([Fixed("file", b'{"agent_id": '), Fixed("fw_cfg", RAW)], copy)


async def test_the_copy_serves_when_every_source_is_gone(tmp_path: Path) -> None:
    """A config drive may be taken away after the first boot."""
    copy = Store(tmp_path).document("settings", AgentSettings)
    await find([Fixed("drive", RAW)], copy)
    assert (tmp_path / "settings.json").stat().st_mode & 0o777 == 0o600
    found = await find([Fixed("drive", None)], copy)
    assert found.settings == SETTINGS


async def test_a_source_that_names_another_agent_wins_over_the_copy(tmp_path: Path) -> None:
    """A disk image that was used before carries a copy; this VM's own source knows better."""
    copy = Store(tmp_path).document("settings", AgentSettings)
    await find([Fixed("drive", raw_of("old"))], copy)
    assert (await find([Fixed("drive", raw_of("new"))], copy)).settings.agent_id == "new"
    assert (await find([], copy)).settings.agent_id == "new"


async def test_a_templates_settings_are_not_copied(tmp_path: Path) -> None:
    """Clones must not wake up with a common copy."""
    copy = Store(tmp_path).document("settings", AgentSettings)
    await find([Fixed("fw_cfg", b'{"agent_id":"","bus":{"urls":[]},"template":true}')], copy)
    assert copy.load() is None


async def test_no_settings_at_all_says_where_it_looked_and_what_to_do() -> None:
    """The first thing that a new user sees."""
    with pytest.raises(SettingsError, match=r"Looked at: file.*config drive.*Write /etc/resurgam/settings.json"):
        await find([Fixed("file x", None), Fixed("config drive y", None)], None)


@pytest.mark.parametrize("padding", [b"", b"\0" * 3000, b" " * 3000, b"\n\0 \0\n"])
def test_padding_to_a_constant_size_is_stripped(padding: bytes) -> None:
    """fw_cfg blobs have a constant size, so that a resumed template reads all of the new one."""
    assert parse(RAW + padding, "fw_cfg") == SETTINGS


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"),
        (b"\0" * 4096, "empty"),
        (b"{", "Invalid JSON"),
        (b"[]", "correct it"),
        (b"{}", "agent_id: Field required; bus: Field required"),
        (b'{"agent_id":"a","bus":{"urls":"nats://x"}}', "bus.urls"),
        (b'{"agent_id":"a b","bus":{"urls":["nats://x:1"]}}', "agent_id: expected"),
        (b'{"agent_id":"a.b","bus":{"urls":["nats://x:1"]}}', "agent_id: expected"),
        (b'{"agent_id":"a","bus":{"urls":[]}}', "at least one"),
        (b'{"agent_id":"a","bus":{"urls":["http://x"]}}', "'http://x' is not"),
        (b'{"agent_id":"a","bus":{"urls":["nats://x"]},"generation":"new"}', "generation"),
        (b'{"agent_id":"a","bus":{"urls":["nats://x"]},"heartbeat_interval_seconds":0}', "more than 0"),
        (b'{"agent_id":"a","bus":{"urls":["nats://x"]},"lease_seconds":1}', "at least heartbeat_interval"),
        (b" " * (64 * 1024 + 1), "more than 65536"),
    ],
)
def test_wrong_settings_are_named_with_where_and_what(raw: bytes, message: str) -> None:
    """Every fault at once, and never a traceback."""
    with pytest.raises(SettingsError, match=message) as caught:
        parse(raw, "file /etc/resurgam/settings.json")
    assert str(caught.value).startswith("file /etc/resurgam/settings.json: ")


async def test_a_file_source(tmp_path: Path) -> None:
    """Absent: nothing, unless it was named on the command line."""
    path = tmp_path / "settings.json"
    assert await FileSource(path).read() is None
    with pytest.raises(SettingsError, match="no such file; it was named"):
        await FileSource(path, required=True).read()
    path.write_bytes(RAW)
    assert await FileSource(path).read() == RAW
    with pytest.raises(SettingsError, match="Is a directory"):
        await FileSource(tmp_path).read()


async def test_a_fw_cfg_source(tmp_path: Path) -> None:
    """A machine without QEMU has none; with the entry there, its content is read anew each time."""
    source = FwCfgSource(tmp_path / "qemu_fw_cfg", load_module=False)
    assert await source.read() is None
    entry = tmp_path / "qemu_fw_cfg" / settings_sources.FW_CFG_ENTRY
    entry.parent.mkdir(parents=True)
    entry.write_bytes(RAW.ljust(4096, b"\0"))
    assert parse(await source.read() or b"", source.name) == SETTINGS
    entry.write_bytes(raw_of("resumed").ljust(4096, b"\0"))
    assert parse(await source.read() or b"", source.name).agent_id == "resumed"


@pytest.mark.parametrize("length", [100, 4000, 4096, 4097, 8192, 12_000, 16_384])
@pytest.mark.parametrize("padding", [b" ", b"\0"])
async def test_fw_cfg_is_read_to_its_padding_and_no_further(tmp_path: Path, length: int, padding: bytes) -> None:
    """Whatever page the settings end in, they are whole, and pages of nothing but padding are left unread."""
    base = len(codec.to_json(AgentSettings(AgentId("a"), SETTINGS.bus)))
    settings = AgentSettings(AgentId("a"), SETTINGS.bus, hostname="h" * (max(0, length - base)))
    raw = codec.to_json(settings)
    entry = tmp_path / settings_sources.FW_CFG_ENTRY
    entry.parent.mkdir(parents=True)
    entry.write_bytes(raw.ljust(16 * 1024, padding))
    read = await FwCfgSource(tmp_path, load_module=False).read()
    assert read is not None
    assert parse(read, "fw_cfg") == settings
    assert len(read) <= len(raw) + 4096 + settings_sources.PADDING_BYTES


def make_drive(directory: Path, files: dict[str, bytes]) -> Path:
    content = directory / "content"
    content.mkdir()
    for name, payload in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(payload)
    image = directory / "drive.img"
    with image.open("wb") as file:
        file.truncate(1024 * 1024)
    subprocess.run(["mkfs.ext2", "-q", "-L", "resurgam", "-d", str(content), str(image)], check=True)
    return image


def finder(image: Path) -> Callable[[str], Awaitable[str | None]]:
    async def find_device(label: str) -> str | None:
        return str(image) if label == "resurgam" else None

    return find_device


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("name", ["resurgam/settings.json", "openstack/latest/user_data"])
async def test_a_config_drive_is_read_and_let_go(tmp_path: Path, name: str) -> None:
    """Both layouts; nothing stays mounted."""
    image = make_drive(tmp_path, {name: RAW})
    assert await ConfigDriveSource(finder(image)).read() == RAW
    assert str(image) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_config_drive_without_settings_is_an_error(tmp_path: Path) -> None:
    """A drive with our label and nothing on it is a mistake of whoever made it."""
    image = make_drive(tmp_path, {"readme": b"hello"})
    with pytest.raises(SettingsError, match=r"has neither resurgam/settings\.json nor openstack"):
        await ConfigDriveSource(finder(image)).read()


async def test_no_drive_is_no_error() -> None:
    """Most machines have none."""

    async def nothing(label: str) -> str | None:
        return None

    assert await ConfigDriveSource(nothing).read() is None
