"""Agent settings: who a VM is and where its bus stands. Made by the monitor when it creates a VM, handed over by the
cloud (file, fw_cfg, config drive), read by the agent once. The outer keys are BOSH's.

Law: secrets (bus credentials) stand only here and in files that only root can read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from protocol.ids import AgentId, Generation, InstanceId, VmCid


@dataclass(frozen=True, slots=True)
class BusSettings:
    urls: tuple[str, ...]
    user: str = ""
    password: str = ""
    credentials: str = ""  # NATS .creds text (JWT and seed)
    ca: str = ""  # PEM
    certificate: str = ""  # PEM, for a bus with mutual TLS
    private_key: str = ""  # PEM


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What every agent is told of registries."""

    auth: dict[str, Any] = field(default_factory=dict, repr=False)
    mirrors: tuple[str, ...] = ()
    certificates: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    agent_id: AgentId
    bus: BusSettings
    generation: Generation = Generation(0)
    instance: InstanceId | None = None
    vm_cid: VmCid | None = None
    hostname: str = ""
    heartbeat_interval_seconds: float = 5.0
    lease_seconds: float = 15.0
    entropy: str = ""  # base64; credited to the kernel after a warm template was resumed
    unix_time: float = 0.0  # the centre's clock when the VM was made; a resumed clock that is behind is set forward
    template: bool = False
    """A VM that is only booted to be snapshotted: bring the engine up, load baked images, say so on the console, wait
    until the settings no longer say so."""
    registry_auth: dict[str, Any] = field(default_factory=dict, repr=False)  # Docker's config format, "auths"
    registry_mirrors: tuple[str, ...] = ()  # of Docker Hub
    registry_certificates: dict[str, str] = field(default_factory=dict)  # HOST or HOST:PORT → PEM of its authority

    def with_registries(self, registries: RegistrySettings) -> AgentSettings:
        return replace(
            self,
            registry_auth=registries.auth,
            registry_mirrors=registries.mirrors,
            registry_certificates=registries.certificates,
        )
