"""Where a VM's settings come from: a file, QEMU's fw_cfg, a config drive; and the copy that is kept of them.

Laws: sources are asked in order and the first that has settings wins; a source that has something unreadable is an
error with where, what and what to do, and is never passed over for the next one or for the copy. The copy serves only
when no source has anything: the cloud may have taken its drive away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import structlog

from agent import subprocesses
from agent.store import Document
from protocol import codec
from protocol.ids import is_token
from protocol.settings import AgentSettings

log = structlog.get_logger(__name__)

SETTINGS_MAX_BYTES = 64 * 1024
PADDING = b"\0 \t\r\n"
PADDING_BYTES = 64
"""So many in a row at the end of a page, and the rest of a fw_cfg blob is padding too."""
PAGE_BYTES = 4096
SETTINGS_FILE = Path("/etc/resurgam/settings.json")
FW_CFG_DIRECTORY = Path("/sys/firmware/qemu_fw_cfg")
FW_CFG_ENTRY = "by_name/opt/org.resurgam/settings/raw"
CONFIG_DRIVE_LABELS = ("resurgam", "config-2", "RESURGAM", "CONFIG-2")  # vfat labels are upper case
CONFIG_DRIVE_FILES = ("resurgam/settings.json", "openstack/latest/user_data")
COMMAND_SECONDS = 20.0


class SettingsError(Exception):
    """There are no usable settings. The text says where, what, and what to do next."""


class Source(Protocol):
    @property
    def name(self) -> str: ...

    async def read(self) -> bytes | None:
        """The settings' bytes, None when this source has none. SettingsError when it has and they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    settings: AgentSettings
    source: str
    raw: bytes = b""


async def find(sources: Sequence[Source], copy: Document[AgentSettings] | None) -> Found:
    """The VM's settings; SettingsError. What a source had is copied, unless it only says to be a template."""
    for source in sources:
        raw = await source.read()
        if raw is None:
            continue
        settings = parse(raw, source.name)
        if copy is not None and not settings.template:
            await asyncio.to_thread(_keep, copy, settings)
        return Found(settings, source.name, raw)
    kept = None if copy is None else await asyncio.to_thread(copy.load)
    if kept is not None:
        log.warning("settings.from_copy", agent=kept.agent_id, reason="no source has settings any more")
        return Found(kept, "the copy of earlier settings")
    looked = "; ".join(source.name for source in sources)
    raise SettingsError(f"no settings found. Looked at: {looked}. Write {SETTINGS_FILE} or give --settings FILE")


def parse(raw: bytes, where: str) -> AgentSettings:
    """The settings in `raw`, which may be padded with NULs and spaces; SettingsError."""
    if len(raw) > SETTINGS_MAX_BYTES:
        raise SettingsError(f"{where}: {len(raw)} bytes, more than {SETTINGS_MAX_BYTES}; is this the right file?")
    text = raw.strip(PADDING)
    if not text:
        raise SettingsError(f"{where}: empty; expected the agent's settings as JSON")
    try:
        settings = codec.from_json(AgentSettings, text)
    except codec.Invalid as error:
        lines = "; ".join(str(error).splitlines())
        raise SettingsError(f"{where}: {lines}; correct it and start the agent again") from None
    faults = list(_faults(settings))
    if faults:
        raise SettingsError(f"{where}: {'; '.join(faults)}; correct it and start the agent again")
    return settings


def _faults(settings: AgentSettings) -> Sequence[str]:
    faults = []
    if not settings.template:
        if not is_token(settings.agent_id):
            faults.append("agent_id: expected 1 to 128 letters, digits, - or _")
        if not settings.bus.urls:
            faults.append("bus.urls: expected at least one nats:// or tls:// URL")
    for url in settings.bus.urls:
        if not url.startswith(("nats://", "tls://")):
            faults.append(f"bus.urls: {url!r} is not a nats:// or tls:// URL")
    if settings.heartbeat_interval_seconds <= 0:
        faults.append("heartbeat_interval_seconds: expected more than 0")
    if settings.lease_seconds < settings.heartbeat_interval_seconds:
        faults.append("lease_seconds: expected at least heartbeat_interval_seconds")
    return faults


@dataclass(frozen=True, slots=True)
class FileSource:
    path: Path
    required: bool = False  # named on the command line

    @property
    def name(self) -> str:
        return f"file {self.path}"

    async def read(self) -> bytes | None:
        try:
            return await asyncio.to_thread(_read_bounded, self.path)
        except FileNotFoundError:
            if self.required:
                raise SettingsError(f"{self.name}: no such file; it was named with --settings") from None
            return None
        except OSError as error:
            raise SettingsError(f"{self.name}: {error.strerror}; the agent must run as root") from None


@dataclass(frozen=True, slots=True)
class FwCfgSource:
    """QEMU's firmware configuration. After a warm template is resumed its content is that of the new VM, read live;
    its size is what it was, which is why the blob has a constant size. The kernel reads it byte by byte, and for each
    page from the start again, so the padding is not read: under emulation it would cost a tenth of a second a look."""

    directory: Path = FW_CFG_DIRECTORY
    load_module: bool = True

    @property
    def name(self) -> str:
        return f"fw_cfg {self.directory / FW_CFG_ENTRY}"

    async def read(self) -> bytes | None:
        if self.load_module and not self.directory.exists():
            with contextlib.suppress(subprocesses.CommandFailed):  # no QEMU, or no such module: no such source
                await subprocesses.run(["modprobe", "--quiet", "qemu_fw_cfg"], COMMAND_SECONDS)
        try:
            return _read_bounded(self.directory / FW_CFG_ENTRY, until_padding=True)  # it does not block
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SettingsError(f"{self.name}: {error.strerror}; the agent must run as root") from None


async def _labelled_device(label: str) -> str | None:
    path = Path("/dev/disk/by-label") / label
    if path.exists():
        return str(path)
    with contextlib.suppress(subprocesses.CommandFailed):
        found = await subprocesses.run(["blkid", "-t", f"LABEL={label}", "-o", "device"], COMMAND_SECONDS, ok=None)
        devices = found.stdout.split()
        return devices[0] if devices else None
    return None


@dataclass(frozen=True, slots=True)
class ConfigDriveSource:
    """A block device with one of the labels, mounted read-only for as long as it is read."""

    find_device: Callable[[str], Awaitable[str | None]] = _labelled_device

    @property
    def name(self) -> str:
        return f"config drive (label {' or '.join(CONFIG_DRIVE_LABELS[:2])})"

    async def read(self) -> bytes | None:
        for label in CONFIG_DRIVE_LABELS:
            device = await self.find_device(label)
            if device is not None:
                return await self._read_device(device)
        return None

    async def _read_device(self, device: str) -> bytes:
        with TemporaryDirectory(prefix="resurgam-config-") as directory:
            try:
                await subprocesses.run(["mount", "-o", "ro,nosuid,nodev,noexec", device, directory], COMMAND_SECONDS)
            except subprocesses.CommandFailed as error:
                raise SettingsError(f"config drive {device}: {error}") from None
            try:
                for relative in CONFIG_DRIVE_FILES:
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        return await asyncio.to_thread(_read_bounded, Path(directory, relative))
            except OSError as error:
                raise SettingsError(f"config drive {device}: {error}") from None
            finally:
                await subprocesses.run(["umount", directory], COMMAND_SECONDS)
        raise SettingsError(f"config drive {device}: has neither {' nor '.join(CONFIG_DRIVE_FILES)}")


def default_sources(settings_file: Path | None) -> tuple[Source, ...]:
    """A file named on the command line is the only source; else the three, in order."""
    if settings_file is not None:
        return (FileSource(settings_file, required=True),)
    return (FileSource(SETTINGS_FILE), FwCfgSource(), ConfigDriveSource())


def _keep(copy: Document[AgentSettings], settings: AgentSettings) -> None:
    kept = copy.load()
    if kept == settings:
        return
    if kept is not None and kept.agent_id != settings.agent_id:
        log.warning("settings.new_identity", before=kept.agent_id, now=settings.agent_id)
    copy.save(settings)


def _read_bounded(path: Path, until_padding: bool = False) -> bytes:
    """One byte more than allowed, so that the parser can say that it is too long. `until_padding`: no further than
    the page that ends in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, left = [], SETTINGS_MAX_BYTES + 1
        while left:
            part = os.read(descriptor, min(left, PAGE_BYTES) if until_padding else left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
            if until_padding and not part[-PADDING_BYTES:].strip(PADDING):
                break
        return b"".join(parts)
    finally:
        os.close(descriptor)
