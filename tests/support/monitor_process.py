"""The health monitor as a process of its own, with faults built in: it can kill itself at a named point, and its cloud
can lie. `python -m tests.support.monitor_process --config FILE [--crash-at N] [--points FILE] [--lying-fence FILE]
[--processes] [--crash-after NAME --once FILE]`; with `--processes` its VMs are those of `process_cloud.py`.

A crash point is passed after each journal write and each cloud call. Each is appended to the points file as
`<number> <name>`; at number N the process gets SIGKILL, from inside, so that nothing is cleaned up; so it does after
the point NAME, once: FILE says that it did.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from healthmonitor.__main__ import configure_logging
from healthmonitor.clouds.cloud import Cloud, FenceProof, Unfenced
from healthmonitor.clouds.registry import build_cloud
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.configuration import CloudConfiguration
from healthmonitor.service import Service
from protocol.ids import VmCid
from protocol.systemd_notify import SystemdNotify
from tests.support.process_cloud import ProcessCloud


class LyingCloud:
    """A cloud whose delete says yes and does nothing, and which cannot prove that a VM is off, while the file is
    there. Everything else is the real one's."""

    def __init__(self, real: Cloud, while_exists: Path) -> None:
        self._real = real
        self._while_exists = while_exists

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        if self._while_exists.exists():
            return Unfenced(vm, "the host does not answer; switch it off by hand, then `resurgam fence confirm`")
        return await self._real.fence(vm)

    async def delete_vm(self, vm: VmCid) -> None:
        if not self._while_exists.exists():
            await self._real.delete_vm(vm)


class CrashPoints:
    def __init__(self, points: Path | None, crash_at: int, crash_after: str = "", once: Path | None = None) -> None:
        self._points = points
        self._crash_after = crash_after
        self._once = once
        self._crash_at = crash_at
        self._count = 0

    def __call__(self, name: str) -> None:
        self._count += 1
        if self._points is not None:
            with self._points.open("a") as file:
                file.write(f"{self._count} {name}\n")
        if self._once is not None and name == self._crash_after and not self._once.exists():
            self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._count == self._crash_at:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--crash-at", type=int, default=0)
    parser.add_argument("--points", type=Path)
    parser.add_argument("--lying-fence", type=Path)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--crash-after", default="")
    parser.add_argument("--once", type=Path)
    arguments = parser.parse_args()
    configure_logging("debug")

    loaded = load_configuration(arguments.config)

    def build(configuration: CloudConfiguration) -> Cloud:
        if arguments.processes:
            real: Cloud = ProcessCloud(Path(str(configuration.options["directory"])), configuration.name)
        else:
            real = build_cloud(configuration, Path(loaded.configuration.state_dir))
        if arguments.lying_fence is None:
            return real
        lying: Any = LyingCloud(real, arguments.lying_fence)
        return lying  # type: ignore[no-any-return]

    async def run() -> None:
        service = Service(
            loaded,
            arguments.config,
            SystemdNotify(os.environ),
            build=build,
            crash_point=CrashPoints(arguments.points, arguments.crash_at, arguments.crash_after, arguments.once),
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, service.stop)
        await service.run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
