"""How a container is made into a VM: systemd as its first process, a Docker Engine of its own inside.

Law: never `--privileged`. What is given is listed here, so that what an engine without a right refuses is seen at
once. The isolation is that of a container with CAP_SYS_ADMIN: against accidents, not against attackers.
"""

from __future__ import annotations

CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYS_TTY_CONFIG",
)
"""Missing on purpose: SYS_MODULE, SYS_RAWIO, SYS_TIME (the host's own), and SYS_RESOURCE, which nested hosts lack."""

SECURITY_OPTIONS = ("seccomp=unconfined", "apparmor=unconfined")
LOOP_DEVICES = "b 7:* rwm"
"""Persistent disks are loop devices; which ones is not known when the container is made, and rules cannot be added
later through the engine."""
TMPFS = {"/run": "", "/tmp": "", "/run/lock": ""}
START = """\
for mounted in $(awk '$3 ~ /^cgroup2?$/ {print $2}' /proc/mounts); do mount -o remount,bind,rw "$mounted"; done
exec /sbin/init"""
"""An engine mounts the cgroups read-only without --privileged; systemd and the inner engine need to write them.
`remount,rw` without `bind` fails as busy."""
SETTINGS_PATH = "etc/resurgam/settings.json"
ENGINE_STATE = "/var/lib/docker"
STOP_SIGNAL = "SIGRTMIN+3"
"""systemd's signal for an orderly halt."""
