"""The deployments of a run, as the operator writes them.

Law: text only; the real parser reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

DISKY = "shop"
SMALL = "blog"
CLOUD = "simulated"


@dataclass(frozen=True, slots=True)
class Shape:
    """`databases` VMs with a disk each, and `fronts` without. `version` changes what containers are made of."""

    databases: int
    fronts: int
    version: int = 0
    memory_gib: int = 1
    disk_gib: int = 1


def shop(shape: Shape) -> str:
    return f"""
name: {DISKY}
stemcell: debian-12
cloud: {CLOUD}
update: {{canaries: 1, max_in_flight: 2}}
instance_groups:
  - name: db
    instances: {shape.databases}
    vm: {{cpus: 1, memory: {shape.memory_gib}GiB}}
    persistent_disks: {{data: {shape.disk_gib}GiB}}
    containers:
      store:
        image: store:7
        volumes: ["data:/data"]
        healthcheck: {{test: ["CMD", "true"], interval: 5s}}
      exporter:
        image: exporter:1
        environment: {{VERSION: "{shape.version}"}}
        depends_on: {{store: {{condition: service_healthy}}}}
  - name: front
    instances: {shape.fronts}
    vm: {{cpus: 1, memory: 1GiB}}
    containers:
      app:
        image: app:{1 + shape.version // 2}
"""


def blog() -> str:
    return f"""
name: {SMALL}
stemcell: debian-12
cloud: {CLOUD}
instance_groups:
  - name: one
    instances: 1
    vm: {{cpus: 1, memory: 1GiB}}
    persistent_disks: {{posts: 1GiB}}
    containers:
      blog:
        image: blog:1
        volumes: ["posts:/posts"]
"""
