"""What a stemcell's system is told: files written into it, units that have no business in it.

Law: nothing here names a machine or a network but the virtual one of QEMU's own.
"""

from __future__ import annotations

VERSION = 1
"""Grows when the builder changes in what it makes."""

LIBRARY = "/opt/resurgam/lib"
LAUNCHER = f"""\
#!/bin/sh
exec /usr/bin/python3 -I {LIBRARY}/resurgam-agent.py "$@"
"""
LAUNCHER_MODULE = f"""\
import sys

sys.path.insert(0, "{LIBRARY}")
from agent.__main__ import main

sys.exit(main())
"""

FILES = {
    "etc/hostname": "resurgam\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 resurgam\n::1 localhost\n",
    "etc/machine-id": "uninitialized\n",
    "etc/fstab": "",
    "etc/apt/sources.list": "# This image is rebuilt, not upgraded in place.\n",
    # QEMU's user network is always the same; asking for an address would cost seconds under emulation.
    "etc/systemd/network/50-qemu.network": (
        "[Match]\nDriver=virtio_net\n\n"
        "[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nDNS=10.0.2.3\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n\n[Link]\nRequiredForOnline=no\n"
    ),
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/modules-load.d/resurgam.conf": "qemu_fw_cfg\noverlay\nbr_netfilter\n",
    "etc/sysctl.d/50-resurgam.conf": "net.ipv4.ip_forward = 1\nkernel.printk = 3 4 1 3\nvm.overcommit_memory = 1\n",
    # crun is a small C program where runc is a large Go one that starts itself anew: an emulated VM starts containers a
    # third sooner, and health checks. It speaks with systemd through D-Bus only.
    "etc/docker/daemon.json": (
        '{\n  "default-runtime": "crun",\n  "runtimes": {"crun": {"path": "/usr/bin/crun"}},\n'
        '  "live-restore": true,\n  "log-driver": "json-file",\n'
        '  "log-opts": {"max-size": "10m", "max-file": "3"},\n  "storage-driver": "overlay2"\n}\n'
    ),
    # A journal that is bounded, and that a read-only or full disk cannot stop.
    "etc/systemd/journald.conf.d/50-resurgam.conf": "[Journal]\nSystemMaxUse=64M\nRuntimeMaxUse=16M\n",
    "etc/systemd/system.conf.d/50-resurgam.conf": "[Manager]\nShowStatus=no\nDefaultTimeoutStopSec=60s\n",
}

MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "getty-static.service",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
    "systemd-pstore.service",
    "systemd-firstboot.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "ldconfig.service",
    "systemd-journal-catalog-update.service",
    "systemd-hwdb-update.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "modprobe@drm.service",
)
