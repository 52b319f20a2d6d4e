"""Which accelerator works here, found out by booting the real kernel.

Law: `/dev/kvm` and a QEMU that starts with it prove nothing: on nested hosts a stock guest kernel then hangs. Only a
kernel that came up under KVM counts, and what was found out is remembered for this host kernel, QEMU and guest
kernel.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import tempfile
from pathlib import Path

from healthmonitor.clouds.local_store import write_durably
from healthmonitor.clouds.qemu_machine import KERNEL_ARGUMENTS, Accel
from healthmonitor.clouds.stemcell import Stemcell

BOOT_SECONDS = 20.0
"""A cloud kernel under KVM needs about one second up to its first process."""
PROBE_ARGUMENT = "resurgam.probe=1"
PROBE_LINE = b"RESURGAM PROBE OK"
"""The stemcell's initrd prints it and powers off when it finds the argument above."""


async def choose(setting: str, qemu: str, qemu_version: str, stemcell: Stemcell, cache: Path) -> Accel:
    """`setting`: kvm, tcg or auto."""
    if setting != "auto":
        return Accel(setting)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accel.TCG
    facts = f"{qemu_version}\n{platform.release()}\n{stemcell.manifest.digest}"
    known = cache / f"accel-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    try:
        return Accel(known.read_text().strip())
    except (FileNotFoundError, ValueError):
        accel = Accel.KVM if await _boots(qemu, stemcell) else Accel.TCG
        await asyncio.to_thread(write_durably, known, accel.value.encode())
        return accel


async def _boots(qemu: str, stemcell: Stemcell) -> bool:
    with tempfile.TemporaryDirectory(prefix="resurgam-probe-") as directory:
        console = Path(directory, "console")
        process = await asyncio.create_subprocess_exec(
            *(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"),
            *("-accel", "kvm", "-cpu", "host", "-m", "256"),
            *("-kernel", str(stemcell.kernel), "-initrd", str(stemcell.initrd)),
            *("-append", f"{KERNEL_ARGUMENTS} {PROBE_ARGUMENT}", "-serial", f"file:{console}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                await process.wait()
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return await asyncio.to_thread(_says_so, console)


def _says_so(console: Path) -> bool:
    return console.exists() and PROBE_LINE in console.read_bytes()
