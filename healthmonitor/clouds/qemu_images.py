"""Short commands of the host (qemu-img, losetup), with a deadline; copy-on-write images."""

from __future__ import annotations

import asyncio
from pathlib import Path

from healthmonitor.clouds.cloud import CloudUnavailable

CREATE_SECONDS = 30.0


async def make_overlay(qemu_img: str, backing: Path, overlay: Path) -> None:
    """An empty image above `backing`, which must be absolute: a relative one would be looked for beside the overlay."""
    if not backing.is_absolute():
        raise ValueError(f"{backing} is not absolute")
    await run(qemu_img, "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", "qcow2", str(overlay))


async def run(*command: str) -> str:
    """What it printed; CloudUnavailable when it fails, is missing or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise CloudUnavailable(
            f"{command[0]} is not installed: apt-get install qemu-system-x86 qemu-utils util-linux"
        ) from None
    try:
        async with asyncio.timeout(CREATE_SECONDS):
            printed, said = await process.communicate()
    except TimeoutError:
        raise CloudUnavailable(f"{' '.join(command[:2])}: no end within {CREATE_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise CloudUnavailable(f"{' '.join(command[:2])}: {said.decode(errors='replace').strip()[-1000:]}")
    return printed.decode(errors="replace")
