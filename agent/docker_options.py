"""A container's specification as the options of the Docker Engine's API.

Law: every field of ContainerSpec that is not the agent's own business appears here, and only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docker import APIClient
from docker.types import LogConfig, Mount, Ulimit

from protocol.spec import ContainerSpec, Healthcheck

NANOSECONDS = 1_000_000_000


def instance_network(instance: str) -> str:
    """The instance's own bridge network, on which its containers find each other by name."""
    return "resurgam." + instance.replace("/", ".")


def networks_of(instance: str, container: ContainerSpec) -> tuple[str, ...]:
    """The user-defined networks it joins; () when a network mode says otherwise."""
    if container.network_mode:
        return ()
    return container.networks or (instance_network(instance),)


def container_options(
    client: APIClient,
    container: ContainerSpec,
    networks: tuple[str, ...],
    mounts: Mapping[str, str],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Keyword arguments of the SDK's create_container, all but the name."""
    networking = None
    if networks:
        endpoint = client.create_endpoint_config(aliases=[container.name])
        networking = client.create_networking_config({networks[0]: endpoint})  # type: ignore[arg-type]
    return {
        "image": container.pin.image_id if container.pin is not None else container.image,
        "command": _list(container.command),
        "entrypoint": [""] if container.entrypoint == () else _list(container.entrypoint),  # [""] clears the image's
        "environment": dict(container.environment),
        "hostname": container.hostname or None,
        "domainname": container.domainname or None,
        "user": container.user or None,
        "working_dir": container.working_dir or None,
        "stdin_open": container.stdin_open,
        "tty": container.tty,
        "ports": sorted({(port.container_port, port.protocol) for port in container.ports}),
        "labels": {**container.labels, **labels},
        "stop_signal": container.stop_signal or None,
        "healthcheck": _healthcheck(container.healthcheck),
        "mac_address": container.mac_address or None,
        "networking_config": networking,
        "host_config": _host_config(client, container, networks, mounts),
    }


def _host_config(
    client: APIClient, container: ContainerSpec, networks: tuple[str, ...], mounts: Mapping[str, str]
) -> dict[str, Any]:
    config: dict[str, Any] = client.create_host_config(
        restart_policy={"Name": "no"},
        network_mode=networks[0] if networks else container.network_mode.replace("service:", "container:", 1),
        port_bindings=_port_bindings(container),
        mounts=[
            Mount(target=mount.target, source=mounts[mount.target], type="bind", read_only=mount.read_only)
            for mount in container.mounts
        ],
        tmpfs=dict(_tmpfs(entry) for entry in container.tmpfs) or None,
        log_config=LogConfig(type=container.logging.driver, config=dict(container.logging.options)),
        extra_hosts=_list(container.extra_hosts),
        dns=_list(container.dns),
        dns_search=_list(container.dns_search),
        dns_opt=_list(container.dns_opt),
        cap_add=_list(container.cap_add),
        cap_drop=_list(container.cap_drop),
        privileged=container.privileged,
        read_only=container.read_only,
        security_opt=_list(container.security_opt),
        devices=[f"{item.host_path}:{item.container_path}:{item.permissions}" for item in container.devices] or None,
        ulimits=[Ulimit(name=item.name, soft=item.soft, hard=item.hard) for item in container.ulimits] or None,
        sysctls=dict(container.sysctls) or None,
        shm_size=container.shm_size_bytes or None,
        init=container.init or None,
        nano_cpus=round(container.cpus * NANOSECONDS) or None,
        cpu_shares=container.cpu_shares or None,
        cpu_period=container.cpu_period_microseconds or None,
        cpu_quota=container.cpu_quota_microseconds or None,
        blkio_weight=container.blkio_weight or None,
        mem_limit=container.mem_limit_bytes or None,
        mem_reservation=container.mem_reservation_bytes or None,
        memswap_limit=container.memswap_limit_bytes or None,
        mem_swappiness=container.mem_swappiness,
        oom_kill_disable=container.oom_kill_disable,
        pids_limit=container.pids_limit or None,
        group_add=_list(container.group_add),
        volume_driver=container.volume_driver or None,
        volumes_from=_list(container.volumes_from),
        pid_mode=container.pid or None,
        ipc_mode=container.ipc or None,
        userns_mode=container.userns_mode or None,
    )
    return config


def _healthcheck(healthcheck: Healthcheck | None) -> dict[str, Any] | None:
    if healthcheck is None:
        return None
    return {
        "test": list(healthcheck.test),
        "interval": round(healthcheck.interval_seconds * NANOSECONDS),
        "timeout": round(healthcheck.timeout_seconds * NANOSECONDS),
        "retries": healthcheck.retries,
        "start_period": round(healthcheck.start_period_seconds * NANOSECONDS),
    }


def _port_bindings(container: ContainerSpec) -> dict[int | str, Any]:
    bindings: dict[int | str, Any] = {}
    for port in container.ports:
        if port.host_port or port.published:
            host_port = port.host_port or None  # None: a free one, chosen by the engine
            bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append((port.host_ip, host_port))
    return bindings


def _tmpfs(entry: str) -> tuple[str, str]:
    path, _, options = entry.partition(":")
    return path, options


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    """None where nothing was said, so that the image's or the engine's own holds."""
    return list(values) if values else None
