"""Which very image each container runs, so that a rebuilt instance runs the same though the name has moved.

Laws: a pin is what an agent said of a container that runs by the specification that the instance has. A container that
changes is resolved anew and loses its pin; one that stays as it is keeps it, whatever its name means by now.

Does not know: how an agent gets an image (agent/images.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from healthmonitor.core.manifest import InstanceGroup
from healthmonitor.core.records import InstanceRecord
from protocol.heartbeat import ContainerReport, ContainerState, Heartbeat
from protocol.ids import ContainerName
from protocol.images import IMAGE_ID, digest_of, repository_of
from protocol.spec import ImagePin, spec_hash

_MADE = frozenset({ContainerState.RUNNING, ContainerState.COMPLETED, ContainerState.STARTING, ContainerState.UNHEALTHY})
"""States in which what is there was made of the image that the report names."""


def pins_after(record: InstanceRecord, heartbeat: Heartbeat) -> Mapping[ContainerName, ImagePin]:
    """The pins, with what this heartbeat says; the very same mapping when that is nothing new."""
    reports = {report.name: report for report in heartbeat.resurgam.containers} if heartbeat.resurgam else {}
    pins: dict[ContainerName, ImagePin] = {}
    for container in record.group.containers:
        known = record.pinned_images.get(container.name)
        report = reports.get(container.name)
        if report is not None and _made_of(report, spec_hash(container)):
            digest = digest_of(report.image_digest)
            same = bool(digest) and repository_of(report.image_digest) == repository_of(container.image)
            found = ImagePin(container.image, report.image_id, digest if same else "")
            if known is not None and (known.image, known.image_id) == (found.image, found.image_id) and not same:
                found = known  # loaded from elsewhere this time; the registry's name of it is still right
            pins[container.name] = found
        elif known is not None and known.image == container.image:
            pins[container.name] = known
    return record.pinned_images if pins == record.pinned_images else pins


def pins_kept(record: InstanceRecord, group: InstanceGroup) -> Mapping[ContainerName, ImagePin]:
    """The pins of an instance that moves to `group`: those of containers that need not be made anew."""
    before = {container.name: spec_hash(container) for container in record.group.containers}
    same = {container.name for container in group.containers if before.get(container.name) == spec_hash(container)}
    return {name: pin for name, pin in record.pinned_images.items() if name in same}


def _made_of(report: ContainerReport, wanted_hash: str) -> bool:
    return report.state in _MADE and report.spec_hash == wanted_hash and IMAGE_ID.fullmatch(report.image_id) is not None
