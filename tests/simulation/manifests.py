"""The deployments of a run, as the operator writes them.

Law: text only; the real parser reads it.
"""

from __future__ import annotations

DISKY = "shop"
SMALL = "blog"
CLOUD = "simulated"


def shop(databases: int, fronts: int, version: int) -> str:
    """`databases` VMs with a disk each, and `fronts` without. `version` changes what one container is made of."""
    return f"""
name: {DISKY}
stemcell: debian-12
cloud: {CLOUD}
update: {{canaries: 1, max_in_flight: 2}}
instance_groups:
  - name: db
    instances: {databases}
    vm: {{cpus: 1, memory: 1GiB}}
    persistent_disks: {{data: 1GiB}}
    containers:
      store:
        image: store:7
        volumes: ["data:/data"]
        healthcheck: {{test: ["CMD", "true"], interval: 5s}}
      exporter:
        image: exporter:1
        environment: {{VERSION: "{version}"}}
        depends_on: {{store: {{condition: service_healthy}}}}
  - name: front
    instances: {fronts}
    vm: {{cpus: 1, memory: 1GiB}}
    containers:
      app:
        image: app:{1 + version // 2}
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
