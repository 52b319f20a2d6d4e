"""Paths of the VM that containers are to see: which of them a new specification brings that the one held had not.

Law: only what changes is asked for. Where nothing is held there is nothing to spare: the container whose path is not
there says so by itself, and the others run.

Does not know: what is on the VM (agent/methods.py looks).
"""

from __future__ import annotations

from protocol.ids import ContainerName
from protocol.spec import InstanceSpec, Mount, MountKind

SHOWN_MAX = 5


def brought_by(spec: InstanceSpec, held: InstanceSpec | None) -> tuple[tuple[ContainerName, Mount], ...]:
    """Container and mount, in the specification's order."""
    if held is None:
        return ()
    before = {container.name: set(container.mounts) for container in held.containers}
    return tuple(
        (container.name, mount)
        for container in spec.containers
        for mount in container.mounts
        if mount.kind is MountKind.BIND and mount not in before.get(container.name, ())
    )


def refusal(missing: tuple[tuple[ContainerName, Mount], ...]) -> str:
    """For people: each with its container, volume and path."""
    said = [
        f"container {name}: volume {mount.source}:{mount.target}: {mount.source} does not exist on this VM"
        for name, mount in missing[:SHOWN_MAX]
    ]
    more = f" (and {len(missing) - SHOWN_MAX} more)" if len(missing) > SHOWN_MAX else ""
    return f"{'; '.join(said)}{more}. Nothing was changed; make it, or correct the manifest"
