"""Idempotency keys under which clouds know our VMs and disks.

Law: different things never share a key (disks and VMs are different name spaces of a cloud). Names may hold `-` and
`_`, so joining them with `-` is not enough: unless every part is plain, a hash of the whole is appended (and the
readable part is cut where it is too long).
"""

from __future__ import annotations

import hashlib
import re

from protocol.ids import DiskName, Generation, InstanceId, split_instance_id

KEY_MAX_CHARACTERS = 60
_HASH_CHARACTERS = 10
_PLAIN = re.compile(r"[a-z0-9]+")


def vm_key(instance: InstanceId, generation: Generation) -> str:
    """`shop-db-0-g3`."""
    return _key(instance, f"g{generation}")


def disk_key(instance: InstanceId, disk: DiskName, number: int = 1) -> str:
    """`shop-db-0-data`: the same for every VM of the instance, so that its data stay its own. A disk that is made to
    take its place has the next free number: `shop-db-0-data-2`."""
    return _key(instance, disk) if number == 1 else _key(instance, disk, str(number))


def snapshot_key(instance: InstanceId, disk: DiskName, unix_seconds: float) -> str:
    """`shop-db-0-data-at-1764244800123`: no disk that is made blank ever has such a key."""
    return _key(instance, disk, "at", str(int(unix_seconds * 1000)))


def hostname(instance: InstanceId) -> str:
    """At most 63 characters of [a-z0-9-], for the VM."""
    return _key(instance)


def _key(instance: InstanceId, *last: str) -> str:
    deployment, group, index = split_instance_id(instance)
    parts = [deployment, group, str(index), *last]
    joined = "-".join(parts).replace("_", "-")
    if len(joined) <= KEY_MAX_CHARACTERS and all(_PLAIN.fullmatch(part) for part in parts):
        return joined
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{joined[: KEY_MAX_CHARACTERS - _HASH_CHARACTERS - 1].rstrip('-')}-{digest}"
