"""The virtual machine's hardware, as QEMU's command line.

Law: the devices depend on the machine's size alone, so a VM made from a template has what the template had, or the
saved state would not load. Everything that differs from VM to VM (disks, forwarded ports, settings) is either added
while it runs or of constant size.

Does not know: processes, records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

DISK_PORTS = 8
SETTINGS_BYTES = 16 * 1024
"""The guest's kernel remembers the size of the settings from the template's boot, so it must always be the same. It
reads them byte by byte, and again from the start for each 4 KiB: 64 KiB would cost half a million port reads."""
NETWORK = "n0"
GUEST_HOST_ADDRESS = "10.0.2.2"
"""Where the guest finds this machine's loopback, in QEMU's user network."""
TRANSLATION_CACHE_MIB = 128
"""Of TCG. Its default grows to 1 GiB of resident memory for each VM; measured: no slower for our guests."""
KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 rw mitigations=off quiet apparmor=0 audit=0 net.ifnames=0 8250.nr_uarts=1 no_timer_check"
)

CONSOLE = "console.log"
CONSOLE_MAX_BYTES = 4 * 1024 * 1024
"""Beyond it the older half is thrown away: a guest may write without end."""
CONTROL_SOCKET = "control.qmp"
MONITOR_SOCKET = "monitor.qmp"
"""A QMP socket serves one client at a time; looking must not wait for a change under way."""

_FORWARD = re.compile(
    r"(?:(?P<address>\d{1,3}(?:\.\d{1,3}){3}):)?(?P<host>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?"
)


class Accel(Enum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Machine:
    cpus: int
    memory_mib: int
    accel: Accel
    kernel: Path
    initrd: Path
    kernel_arguments: str = ""  # added to KERNEL_ARGUMENTS
    has_root: bool = True


def arguments(machine: Machine, qemu: str, directory: Path) -> list[str]:
    """The command line, to be run in `directory`, which holds root.qcow2 and the settings."""
    processor = {
        Accel.KVM: ["-accel", "kvm", "-cpu", "host"],
        # AVX, SVM and five-level paging cost TCG a third more than they give; rdrand feeds the guest's entropy.
        Accel.TCG: [
            "-accel",
            f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}",
            "-cpu",
            "Nehalem,+rdrand,enforce=off",
        ],
    }[machine.accel]
    root = ""
    drive: list[str] = []
    if machine.has_root:
        root = "root=/dev/vda "
        file = str(directory / "root.qcow2").replace(",", ",,")
        # The root disk is thrown away with its VM, so its flushes are worth nothing.
        drive = ["-drive", f"if=none,id=root,file={file},format=qcow2,cache=unsafe,discard=unmap"]
        drive += ["-device", "virtio-blk-pci,drive=root,serial=root"]
    ports = []
    for number in range(1, DISK_PORTS + 1):
        ports += ["-device", f"pcie-root-port,id={port_name(number)},chassis={number},slot={number}"]
    return [
        qemu,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35",
        *processor,
        "-smp",
        str(machine.cpus),
        "-m",
        str(machine.memory_mib),
        "-kernel",
        str(machine.kernel),
        "-initrd",
        str(machine.initrd),
        "-append",
        f"{root}{KERNEL_ARGUMENTS} {machine.kernel_arguments}".strip(),
        *drive,
        "-netdev",
        f"user,id={NETWORK}",
        "-device",
        f"virtio-net-pci,netdev={NETWORK},mac=52:54:00:00:00:10,romfile=",
        "-device",
        "virtio-rng-pci",
        *ports,
        "-fw_cfg",
        "name=opt/org.resurgam/settings,file=settings",
        "-qmp",
        f"unix:{CONTROL_SOCKET},server=on,wait=off",
        "-qmp",
        f"unix:{MONITOR_SOCKET},server=on,wait=off",
        # Appended to, so that it can be cut short from outside while it is written.
        "-chardev",
        f"file,id=console,path={CONSOLE},append=on",
        "-serial",
        "chardev:console",
        "-pidfile",
        str(directory / "qemu.pid"),
    ]


def port_name(number: int) -> str:
    return f"port{number}"


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of this machine that leads to one of the guest's."""

    protocol: str
    address: str
    host_port: int
    guest_port: int

    @property
    def rule(self) -> str:
        """As QEMU writes it."""
        return f"{self.protocol}:{self.address}:{self.host_port}-:{self.guest_port}"


def parse_forward(text: str) -> PortForward:
    """From `127.0.0.1:16379:6379[/udp]` (host address, host port, guest port). ValueError when it is none. Without an
    address it is the loopback: a database is not opened to the world by leaving something out."""
    match = _FORWARD.fullmatch(text)
    if match is None or not all(0 < int(match[name]) < 65536 for name in ("host", "guest")):
        raise ValueError(f"{text!r}: expected [address:]host_port:guest_port[/tcp|/udp], as 127.0.0.1:16379:6379")
    return PortForward(
        match["protocol"] or "tcp", match["address"] or "127.0.0.1", int(match["host"]), int(match["guest"])
    )


def padded_settings(settings: bytes) -> bytes:
    """JSON may end in spaces. ValueError when it is too long."""
    if len(settings) > SETTINGS_BYTES:
        raise ValueError(f"agent settings of {len(settings)} bytes are longer than the {SETTINGS_BYTES} set aside")
    return settings.ljust(SETTINGS_BYTES)
