"""Warm templates: a VM that was booted once, up to a working engine, and whose memory is kept. New VMs go on from it.

Law: a template fits only the QEMU, stemcell and hardware it was made with; its key covers them all. It appears with
its name only when it is whole, and never changes.

Booting under TCG takes 15 to 25 s, going on from a template under one (measured). What a snapshot must not carry
into two VMs (identity, random numbers, time) comes with the settings, which the agent reads anew until they no longer
say `template`.

Does not know: records of VMs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from healthmonitor.clouds import qemu_machine, qemu_process, qmp
from healthmonitor.clouds.cloud import CloudUnavailable
from healthmonitor.clouds.local_store import LocalStore, write_durably
from healthmonitor.clouds.qemu_images import make_overlay
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET, Machine
from healthmonitor.clouds.stemcell import Stemcell
from protocol import codec
from protocol.ids import AgentId
from protocol.settings import AgentSettings, BusSettings

READY_LINE = b"RESURGAM TEMPLATE READY"
"""Written to the first serial port by the agent (agent/template.py)."""
BOOT_SECONDS = 480.0
USUAL_BOOT_SECONDS = 30.0  # only for the progress bar
SAVE_SECONDS = 60.0
BANDWIDTH_BYTES = 8 * 1024**3  # per second: as fast as it goes
POLL_SECONDS = 0.1
CONSOLE_TAIL_BYTES = 1500
MARKER = "stemcell"
"""Says what the template is for; there only when all of it is."""

Progress = Callable[[str, float], None]
"""(what is being done, share done from 0 to 1)"""


@dataclass(frozen=True, slots=True)
class Template:
    key: str
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.qcow2"

    @property
    def incoming(self) -> list[str]:
        """QEMU's arguments to go on from here."""
        return ["-incoming", f"exec:cat {shlex.quote(str(self.directory / 'state'))}"]


class Templates:
    def __init__(self, store: LocalStore, qemu: str, qemu_img: str, qemu_version: str) -> None:
        self._store = store
        self._qemu = qemu
        self._qemu_img = qemu_img
        self._qemu_version = qemu_version

    def key(self, machine: Machine, stemcell: Stemcell) -> str:
        hardware = "\n".join(qemu_machine.arguments(machine, self._qemu, Path("/")))
        facts = f"{self._qemu_version}\n{stemcell.manifest.digest}\n{hardware}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def find(self, machine: Machine, stemcell: Stemcell) -> Template | None:
        template = self._at(self.key(machine, stemcell))
        return template if (template.directory / MARKER).exists() else None

    async def build(self, machine: Machine, stemcell: Stemcell, progress: Progress) -> Template:
        """The template, made now unless it is there. One builds, others wait for it."""
        key = self.key(machine, stemcell)
        async with self._store.locked(key, BOOT_SECONDS + SAVE_SECONDS, self._store.templates):
            known = self.find(machine, stemcell)
            if known is not None:
                progress("warm template is there", 1.0)
                return known
            draft = self._store.templates / f"draft-{key}"
            if draft in self._store.templates.iterdir():
                await self._discard(draft)
            draft.mkdir(mode=0o700)
            try:
                await self._boot(machine, stemcell, draft, progress)
                await self._save(draft, progress)
            finally:
                # Saved or failed, this machine is of no more use, and its root disk's writes are all in the page cache.
                await qemu_process.kill(draft / "qemu.pid", draft / "running.lock", timeout_seconds=10.0)
            for name in ("settings", "qemu.pid", "running.lock", "control.qmp", "monitor.qmp"):
                (draft / name).unlink(missing_ok=True)
            write_durably(draft / MARKER, f"{_purpose(machine, stemcell)}\n".encode())
            final = self._at(key)
            await asyncio.to_thread(os.sync)
            draft.rename(final.directory)
            progress("warm template is ready", 1.0)
            return final

    async def remove_superseded(self, machine: Machine, stemcell: Stemcell, used: frozenset[str]) -> list[str]:
        """Removes templates for VMs of this size that were made with earlier builds of the stemcell, another QEMU, …,
        unless a VM goes back to them; their keys."""
        current = self.key(machine, stemcell)
        removed = []
        for marker in sorted(self._store.templates.glob(f"*/{MARKER}")):
            key = marker.parent.name
            if marker.read_text().strip() == _purpose(machine, stemcell) and key != current and key not in used:
                marker.unlink()
                await asyncio.to_thread(shutil.rmtree, marker.parent)
                removed.append(key)
        return removed

    def _at(self, key: str) -> Template:
        return Template(key, self._store.templates / key)

    async def _discard(self, draft: Path) -> None:
        """What an interrupted build left behind, its process included."""
        if await qemu_process.kill(draft / "qemu.pid", draft / "running.lock", timeout_seconds=10.0) is None:
            raise CloudUnavailable(f"an earlier build of this template in {draft} cannot be ended")
        await asyncio.to_thread(shutil.rmtree, draft)

    async def _boot(self, machine: Machine, stemcell: Stemcell, draft: Path, progress: Progress) -> None:
        settings = AgentSettings(agent_id=AgentId("template"), bus=BusSettings(urls=()), template=True)
        (draft / "settings").write_bytes(qemu_machine.padded_settings(codec.to_json(settings)))
        await make_overlay(self._qemu_img, stemcell.root, draft / "root.qcow2")
        try:
            await qemu_process.start_detached(
                qemu_machine.arguments(machine, self._qemu, draft), draft, draft / "running.lock"
            )
        except qemu_process.LaunchFailed as error:
            raise CloudUnavailable(f"QEMU did not start for the warm template: {error}") from None
        loop = asyncio.get_running_loop()
        started = loop.time()
        console = draft / qemu_machine.CONSOLE
        while READY_LINE not in console.read_bytes():
            passed = loop.time() - started
            if passed > BOOT_SECONDS:
                raise CloudUnavailable(
                    f"the warm template was not ready after {BOOT_SECONDS:g} s; the console ends with: {_tail(console)}"
                )
            if not qemu_process.is_held(draft / "running.lock"):
                raise CloudUnavailable(
                    f"the warm template's VM ended by itself; the console ends with: {_tail(console)}"
                )
            progress("booting the warm template", min(0.85, 0.85 * passed / USUAL_BOOT_SECONDS))
            await asyncio.sleep(POLL_SECONDS)

    async def _save(self, draft: Path, progress: Progress) -> None:
        progress("saving the warm template", 0.9)
        loop = asyncio.get_running_loop()
        try:
            async with qmp.connect(draft / CONTROL_SOCKET) as machine:
                await machine.execute("stop")
                await machine.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH_BYTES)
                await machine.execute("migrate", uri=f"exec:cat > {shlex.quote(str(draft / 'state'))}")
                deadline = loop.time() + SAVE_SECONDS
                while True:
                    migration = await machine.execute("query-migrate")
                    if migration.get("status") == "completed":
                        break
                    if migration.get("status") in ("failed", "cancelled") or loop.time() > deadline:
                        raise CloudUnavailable(f"saving the warm template: {migration.get('status')}")
                    await asyncio.sleep(POLL_SECONDS)
        except (qmp.QmpRefused, qmp.QmpUnanswered) as error:
            raise CloudUnavailable(f"saving the warm template: {error}") from None


def _purpose(machine: Machine, stemcell: Stemcell) -> str:
    return f"{stemcell.manifest.name} cpus={machine.cpus} memory={machine.memory_mib} accel={machine.accel.value}"


def _tail(console: Path) -> str:
    return console.read_bytes()[-CONSOLE_TAIL_BYTES:].decode(errors="replace").strip() or "nothing"
