"""Names of things, each with a type of its own, so that one can never be passed for another.

Law: ids are made once, compared for equality, and never taken apart except here.
"""

from __future__ import annotations

import re
from typing import NewType

DeploymentName = NewType("DeploymentName", str)
InstanceId = NewType("InstanceId", str)
"""`deployment/group/index`, stable for the life of the place, whatever VM fills it: `shop/db/0`."""
AgentId = NewType("AgentId", str)
"""New for every VM, one NATS token (no dots, no spaces), so that an old VM can never speak for the instance."""
VmCid = NewType("VmCid", str)
DiskCid = NewType("DiskCid", str)
"""At most 20 characters of [a-z0-9-]: it is the serial number that the guest sees, and virtio-blk cuts there."""
Generation = NewType("Generation", int)
"""Grows by one with each VM of an instance; 0 is a VM without an instance."""
Revision = NewType("Revision", int)
"""Grows by one with each specification given to an instance; a lower one is refused by the agent."""
CloudName = NewType("CloudName", str)
ContainerName = NewType("ContainerName", str)
DiskName = NewType("DiskName", str)
OperationId = NewType("OperationId", str)
MonitorId = NewType("MonitorId", str)

DISK_CID_MAX_CHARACTERS = 20

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_name(text: str) -> bool:
    """A name that an operator gives: lower-case letters, digits, `-`, `_`; 1 to 63 characters."""
    return _NAME.fullmatch(text) is not None


def is_token(text: str) -> bool:
    """One NATS subject token of at most 128 characters without wildcards."""
    return _TOKEN.fullmatch(text) is not None


def instance_id(deployment: str, group: str, index: int) -> InstanceId:
    return InstanceId(f"{deployment}/{group}/{index}")


def split_instance_id(instance: InstanceId) -> tuple[DeploymentName, str, int]:
    """The (deployment, group, index) of an instance id; ValueError when it is not one."""
    deployment, group, index = instance.split("/")
    return DeploymentName(deployment), group, int(index)


def instance_key(instance: InstanceId) -> str:
    """The instance id as a key of a bucket or a file name (no slash): `shop.db.0`."""
    return instance.replace("/", ".")
