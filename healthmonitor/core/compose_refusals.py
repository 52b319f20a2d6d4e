"""Keys of Compose and of docker-boshrelease that a container here does not have, each with what to write instead.

Law: nothing that changes what runs is dropped in silence. A key is read, or refused with its equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping

_ONE_VM = "every container of a group runs on each of its VMs"

_COMPOSE: dict[str, str] = {
    "build": "images are built elsewhere; push one to a registry, or bake it into the stemcell "
    "(resurgam stemcell build --image NAME), and write image: NAME",
    "container_name": "the key under containers is the name; rename the key instead",
    "links": "containers of a group find one another by name without links; write depends_on for the order of start",
    "external_links": "containers of a group find one another by name; use extra_hosts for what is outside",
    "scale": f"{_ONE_VM}; write instances: N on the group",
    "profiles": "every container of the manifest runs; put optional ones into a manifest of their own",
    "extends": "use a YAML anchor and <<: *anchor, or a template of your own",
    "configs": "put the file on the VM and bind it: volumes: [/etc/thing.conf:/etc/thing.conf:ro]",
    "secrets": "put the secret in a file on the VM and bind it: volumes: [/etc/secret:/run/secrets/secret:ro]",
    "platform": "the stemcell decides the platform; name an image of that platform",
    "runtime": "the stemcell's engine decides the runtime (daemon.json: default-runtime)",
    "cgroup_parent": "the agent keeps its own cgroups; use cpus, mem_limit and pids_limit",
    "cgroup": "the engine's own cgroup namespace is used",
    "cpuset": "use cpus or cpu_shares; VMs are sized for their containers",
    "cpu_count": "a Windows key; use cpus",
    "cpu_percent": "a Windows key; use cpus",
    "cpu_rt_period": "real-time scheduling is not supported; use cpu_shares",
    "cpu_rt_runtime": "real-time scheduling is not supported; use cpu_shares",
    "oom_score_adj": "use mem_limit; on_oom says what an out-of-memory kill leads to",
    "isolation": "a Windows key",
    "credential_spec": "a Windows key",
    "uts": "use hostname",
    "storage_opt": "data belongs on a persistent disk: persistent_disks and volumes: [DISK:/path]",
    "device_cgroup_rules": "use devices",
    "gpus": "use devices",
    "label_file": "write labels",
    "annotations": "use labels",
    "attach": "the command is not interactive; see resurgam logs",
    "develop": "for development only; leave it out",
    "post_start": "hooks are not supported; do it in the image's entrypoint, or in a container that others depend on "
    "with condition: service_completed_successfully",
    "pre_stop": "hooks are not supported; use stop_signal and stop_grace_period",
    "provider": "external services are not supported",
    "models": "not supported; run the model in a container",
    "use_api_socket": "bind the engine's socket: volumes: [/var/run/docker.sock:/var/run/docker.sock]",
    "pull_refresh_after": "name the image by digest (image: name@sha256:…) and change it when it should change",
}

_DOCKER_BOSHRELEASE: dict[str, str] = {
    "name": "the key under containers is the name; containers is a mapping of name to container",
    "dockerfile": "images are built elsewhere, not on the VM; push one, or bake it into the stemcell "
    "(resurgam stemcell build --image NAME), and write image: NAME",
    "disable_content_trust": "content trust is not checked; name the image by digest: image: name@sha256:…",
    "group_adds": "write group_add",
    "timeout": "write healthcheck: {start_period: …} for a slow start, stop_grace_period for a slow stop",
    "env_vars": "write environment",
    "bind_ports": 'write ports: ["HOST:CONTAINER"]',
    "expose_ports": 'write expose: ["PORT"]',
    "net": "write network_mode",
    "dns_options": "write dns_opt",
    "bind_volumes": "declare a disk in the group's persistent_disks and write volumes: [DISK:/path]; "
    "each path gets a directory of its own",
    "store_dir": "a disk's place on the VM is the agent's; write volumes: [DISK:/path], "
    "or volumes: [DISK/DIRECTORY:/path] to share a directory",
    "workdir": "write working_dir",
    "memory": "write mem_limit: SIZE (such as 512m)",
    "memory_reservation": "write mem_reservation: SIZE",
    "memory_swap": "write memswap_limit: SIZE",
    "memory_swappiness": "write mem_swappiness: 0 to 100",
    "kernel_memory": "Linux and Docker have removed it; write mem_limit, which counts kernel memory too",
    "ulimit": "write ulimits: {nofile: 8192}",
    "cap_adds": "write cap_add",
    "cap_drops": "write cap_drop",
    "security_options": "write security_opt",
    "log_driver": "write logging: {driver: NAME}",
    "log_options": "write logging: {options: {NAME: VALUE}}",
    "lxc_options": "Docker removed LXC in 2015; use devices, cap_add, ulimits, cpus and mem_limit",
}

REFUSED: Mapping[str, str] = {**_COMPOSE, **_DOCKER_BOSHRELEASE}
