"""Keys of a deployment, a group or a VM that other systems have (BOSH, Compose) and a manifest has not, each with what
to write instead.

Law: people come with the words of what they used before; none of these is answered with "unknown key" alone.
"""

from __future__ import annotations

from collections.abc import Mapping

_DAEMON = "the engine's settings are the stemcell's (/etc/docker/daemon.json; resurgam stemcell build)"
_BOSH = {
    "releases": "there are no releases: a container's image holds all it needs",
    "stemcells": "write stemcell: NAME",
    "variables": "write ${NAME} where the value belongs, and give it with --var NAME=VALUE",
    "features": "not needed; leave it out",
    "addons": "write the containers into each group (a YAML anchor saves repeating them)",
    "properties": "write each container's keys as in Compose",
    "jobs": "write containers: {NAME: {image: …}}",
    "disk_types": "write persistent_disks: {NAME: {size: …, cloud_properties: …}}",
    "vm_types": "write vm: {cpus: …, memory: …, cloud_properties: …}",
}
TOP_REFUSED: Mapping[str, str] = {
    **_BOSH,
    "services": "containers stand in a group: instance_groups: [{name: …, containers: {…}}]",
    "containers": "containers stand in a group: instance_groups: [{name: …, containers: {…}}]",
    "volumes": "data is on a group's persistent_disks: {NAME: SIZE}",
    "persistent_disks": "disks belong to a group; write them there",
    "version": "leave it out; there is one version of this format",
    "secrets": "put secrets in files on the VM and bind them: volumes: [/etc/secret:/run/secrets/secret:ro]",
    "configs": "put files on the VM and bind them: volumes: [/etc/thing.conf:/etc/thing.conf:ro]",
    "include": "one file holds a deployment",
    "groups": "write instance_groups",
    "docker": _DAEMON,
}
GROUP_REFUSED: Mapping[str, str] = {
    **_BOSH,
    "azs": "there are no availability zones; write a group for each, with its cloud or cloud_properties",
    "vm_type": "write vm: {cpus: …, memory: …, cloud_properties: …}",
    "vm_resources": "write vm: {cpus: …, memory: …}",
    "vm_extensions": "write vm: {cloud_properties: …}",
    "persistent_disk": "write persistent_disks: {data: 10GiB}; containers use it by that name",
    "persistent_disk_type": "write persistent_disks: {data: {size: …, cloud_properties: …}}",
    "persistent_disk_pool": "write persistent_disks: {data: {size: …, cloud_properties: …}}",
    "lifecycle": 'a container that ends by itself has restart: "no"',
    "migrated_from": "groups are not renamed; a new name is a new group with new disks",
    "env": "write environment on the container",
    "services": "write containers",
    "volumes": "write persistent_disks: {NAME: SIZE}",
    "disks": "write persistent_disks: {NAME: SIZE}",
    "docker": _DAEMON,
    "image": "images belong to containers: containers: {NAME: {image: …}}",
}
VM_REFUSED: Mapping[str, str] = {
    "ram": "write memory",
    "cpu": "write cpus",
    "ephemeral_disk_size": "write cloud_properties, as the provider calls it",
    "disk": "data is on persistent_disks; the size of the root disk is the stemcell's or in cloud_properties",
}
