"""The main job, shown on real parts: `python -m healthmonitor.cli.demo`, which `make demo` runs.

Two QEMU VMs, a Redis with a persistent disk and containers that depend on it. Data are written, Redis is ended behind
the agent's back, the VM is killed, and each time the very same data must be there again.

Law: exit status 0 only when everything it says it saw was seen. Whatever happens, the system is left as it is, with a
word on how to look around and how to remove it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from healthmonitor.cli.client import ApiClient
from healthmonitor.cli.commands_site import writer
from healthmonitor.cli.commands_stemcell import progress_bar
from healthmonitor.cli.demo_data import DemoData, DemoFailed
from healthmonitor.cli.events_view import clock, event_text
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.following import follow_deployment, last_sequence
from healthmonitor.cli.manifest_upload import upload
from healthmonitor.cli.screen import Screen, duration, logs_to_standard_error, make_table, plain_table
from healthmonitor.cli.session import Session
from healthmonitor.cli.site import LocalSite
from healthmonitor.cli.status_view import all_good, only, status_view
from healthmonitor.clouds import demo_images, stemcell_build
from healthmonitor.clouds.build_tools import BuildFailed
from healthmonitor.clouds.cloud import CloudError
from healthmonitor.clouds.qemu import QemuCloud
from healthmonitor.clouds.registry import build_cloud
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.manifest import Manifest
from healthmonitor.core.manifest_file import parse_manifest

STEMCELL = "demo"
DATABASE = "shop/db/0"
REDIS_PORT = 16379
CONTAINER_BACK_SECONDS = 300.0
"""Three containers in order: without KVM the engine takes half a minute of the VM's time for each."""
VM_BACK_SECONDS = 300.0
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that this script did or saw."""

    at: float
    text: str


class Demo:
    def __init__(self, project: Path, screen: Screen) -> None:
        self._project = project
        self._cache = project / ".cache"
        self._manifest_path = project / "examples" / "shop.yml"
        self._screen = screen
        self._site = LocalSite(project / ".resurgam" / "demo")
        self._session = Session(screen, directory_option=self._site.directory)
        self._marks: list[Mark] = []
        self._data = DemoData("127.0.0.1", REDIS_PORT)

    def run(self) -> None:
        """Returns when everything held; DemoFailed or CliFailure otherwise."""
        self._heading("1. Building what VMs are made of (kept in .cache for the next time)")
        manifest = parse_manifest(self._manifest_path.read_bytes(), str(self._manifest_path)).manifest
        self._build()
        self._heading("2. Starting bus and health monitor")
        started = self._site.up(writer(None, self._cache / "stemcells", self._cache / "demo-cloud"), self._screen.note)
        for line in started.lines:
            self._screen.say(f"  {line}")
        self._warm(manifest)
        self._heading("3. Deploying examples/shop.yml on two VMs")
        first = last_sequence(self._session)
        self._deploy()
        self._heading("4. Writing data into Redis")
        checksum = self._data.write()
        self._mark(f"wrote {self._data.count} keys, sha256 {checksum[:16]}…")
        self._end_container()
        self._kill_vm()
        self._heading("7. What happened")
        self._timeline(first)
        self._prove(checksum)

    def _build(self) -> None:
        with progress_bar(self._screen, "  container images") as report:
            images = demo_images.build(("redis", "tools"), self._cache / "images", report)
        with progress_bar(self._screen, "  stemcell (Debian 12, Docker Engine, agent)") as report:
            built = stemcell_build.build(STEMCELL, self._cache / "stemcells", images=images, progress=report)
        self._screen.say(f"  stemcell {built.manifest.name} {built.manifest.digest[:12]} is ready")

    def _warm(self, manifest: Manifest) -> None:
        """Templates for the sizes of VM that the manifest asks for."""
        cloud = self._cloud()
        for cpus, memory in sorted({(group.vm.cpus, group.vm.memory_mib) for group in manifest.groups}):
            with progress_bar(self._screen, f"  warm template, {cpus} CPU, {memory} MiB") as report:
                asyncio.run(cloud.build_template(STEMCELL, cpus, memory, report))

    def _cloud(self) -> QemuCloud:
        configuration = load_configuration(self._site.configuration_path).configuration
        qemu = next(cloud for cloud in configuration.clouds.values() if cloud.provider == "qemu")
        built = build_cloud(qemu, Path(configuration.state_dir))
        if not isinstance(built, QemuCloud):
            raise DemoFailed("the demonstration's cloud is not qemu")
        return built

    def _deploy(self) -> None:
        body = upload(self._manifest_path, [])
        planned = self._api.post("/v1/plan", body)
        if planned["plan"]["empty"]:
            self._screen.say("  it is deployed already")
            self._wait("the shop is as it should be", VM_BACK_SECONDS, lambda: all_good(self._status()))
            return
        after = last_sequence(self._session)
        reply = self._api.put("/v1/deployments/shop", {**body, "because": "make demo"})
        began = time.time()
        follow_deployment(self._session, "shop", reply["revision"], after)
        self._mark(f"deployed in {duration(time.time() - began)}")

    def _end_container(self) -> None:
        self._heading(
            "5. Ending the container redis behind the agent's back: its process is told to exit without saving"
        )
        before = self._containers()
        how = self._data.end_redis()
        ended = self._mark(f"redis has ended ({how})")
        self._wait("redis answers again", CONTAINER_BACK_SECONDS, self._data.answers)
        self._mark(f"redis answers again, {duration(time.time() - ended)} after its end")

        def all_restarted() -> bool:
            now = self._containers()
            return all(
                name in now and now[name]["fine"] and _run_of(now[name]) != _run_of(container)
                for name, container in before.items()
            )

        self._wait("redis and everything that depends on it was restarted", CONTAINER_BACK_SECONDS, all_restarted)
        names = ", ".join(before)
        self._mark(f"restarted in order and running: {names}, {duration(time.time() - ended)} after its end")
        self._data.check("after the end of the container")
        self._data.write_more("written between the two failures")

    def _kill_vm(self) -> None:
        self._heading("6. Killing the VM: SIGKILL to its QEMU process")
        before = self._instance()
        old = str(before["vm"]["vm_cid"])
        pid = qemu_process_of(old)
        os.kill(pid, signal.SIGKILL)
        killed = self._mark(f"SIGKILL to QEMU of {old} (pid {pid})")

        def rebuilt() -> bool:
            now = self._instance()
            return now["generation"] > before["generation"] and all_good(only(self._status(), "shop"))

        self._wait("the VM is rebuilt and its containers are healthy", VM_BACK_SECONDS, rebuilt)
        new = self._instance()["vm"]["vm_cid"]
        self._mark(f"rebuilt as {new}, containers healthy, {duration(time.time() - killed)} after the kill")
        self._data.check("after the loss of the VM")

    def _timeline(self, after: int) -> None:
        """What the monitor noted and what this script did, in one order."""
        events = [
            (event["at"], f"{event['kind']}  {event['subject']}", event_text(event))
            for event in self._api.get("/v1/events", after=after, limit=10_000)["events"]
        ]
        lines = sorted([*events, *((mark.at, "demo", mark.text) for mark in self._marks)])
        rows: list[Sequence[str | Text]] = []
        before: float | None = None
        for at, what, text in lines:
            style = "bold yellow" if what == "demo" else ""
            passed = "" if before is None else f"+{at - before:.2f} s"
            rows.append((clock(at), passed, Text(what, style=style), Text(text, style=style)))
            before = at
        columns = ("time", "after", "what", "")
        if self._screen.is_terminal:
            self._screen.console.print(make_table(columns, rows), soft_wrap=False)
        else:
            self._screen.say(plain_table(columns, rows))

    def _prove(self, checksum: str) -> None:
        found = self._data.check("at the end")
        self._screen.say()
        self._screen.say(f"data before:  sha256 {checksum}", "bold")
        self._screen.say(f"data now:     sha256 {found}", "bold")
        if checksum != found:
            raise DemoFailed("the data are not the same")
        self._screen.say(
            f"The data are intact: {self._data.count} keys, each as it was written before the container ended and "
            "the VM was killed.",
            "bold green",
        )
        self._screen.console.print(status_view(self._status(), time.time(), self._screen.is_terminal))

    # What the above is made of.

    @property
    def _api(self) -> ApiClient:
        return self._session.api

    def _status(self) -> Any:
        return self._session.status()

    def _instance(self) -> Any:
        return self._api.get(f"/v1/instances/{DATABASE}")

    def _containers(self) -> dict[str, Any]:
        return {container["name"]: container for container in self._instance()["containers"]}

    def _wait(self, what: str, seconds: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        with self._screen.err.status(f"  waiting until {what} …"):
            while not condition():
                if time.monotonic() > deadline:
                    raise DemoFailed(f"not seen within {duration(seconds)}: {what}")
                time.sleep(LOOK_SECONDS)

    def _mark(self, text: str) -> float:
        mark = Mark(time.time(), text)
        self._marks.append(mark)
        self._screen.say(f"  {clock(mark.at)}  {text}")
        return mark.at

    def _heading(self, text: str) -> None:
        self._screen.say()
        self._screen.say(text, "bold")


def _run_of(container: Any) -> tuple[str, int]:
    return container["container_id"], container["restarts"]


def qemu_process_of(vm_cid: str) -> int:
    """The pid of the QEMU process that has this VM's name in its command line or works in its directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            directory = os.readlink(entry / "cwd")
        except OSError:
            continue  # it ended meanwhile, or is not ours to look at
        is_qemu = os.path.basename(command[0]).startswith(b"qemu-system")
        if is_qemu and (vm_cid in directory.split("/") or any(vm_cid.encode() in word for word in command)):
            return int(entry.name)
    raise DemoFailed(f"no QEMU process of {vm_cid} is to be seen")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--project", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    logs_to_standard_error()
    screen = Screen(as_json=False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(_run(Demo(arguments.project.absolute(), screen), screen))


def _run(demo: Demo, screen: Screen) -> int:
    began = time.monotonic()
    code = int(ExitCode.FAILED)
    try:
        demo.run()
        code = int(ExitCode.OK)
        screen.say()
        screen.say(f"Everything held; the demonstration took {duration(time.monotonic() - began)}.", "green")
    except CliFailure as failure:
        screen.failure(failure)
    except (DemoFailed, BuildFailed, CloudError) as error:
        screen.failure(CliFailure(str(error), next_step="`.venv/bin/resurgam status` and `events` show more"))
    except KeyboardInterrupt:
        screen.note("interrupted")
        code = 130
    screen.say()
    sudo = "sudo " if os.environ.get("SUDO_USER") else ""
    screen.say(f"Look around:    {sudo}.venv/bin/resurgam status    (or events --follow, incidents, logs db/0 redis)")
    screen.say("Remove it all:  make down    (make clean removes .cache and .venv too)")
    return code


if __name__ == "__main__":
    main()
