"""The configuration files that `up` and `init` write: complete, and with a comment where a person may want to change
something. Pure.
"""

from __future__ import annotations

import json
from pathlib import Path

from healthmonitor.embedded_nats import AGENT_USER, MONITOR_USER, SYSTEM_USER, EmbeddedNats
from healthmonitor.nats_cluster import ClusterNats


def local_site(
    nats: EmbeddedNats,
    api_port: int,
    token_file: Path,
    cloud_directory: Path,
    stemcells: Path,
    preset: str = "small",
) -> str:
    """A site of one machine: embedded bus, QEMU VMs."""
    return f"""# Written by `resurgam up`. Yours to change; SIGHUP applies most keys, a restart all of them.
# Every key is explained in docs/configuration.md.
preset: {preset}
state_dir: {_quoted(token_file.parent)}

{_bus(nats)}
http:
  listen: 127.0.0.1:{api_port}
  token_file: {_quoted(token_file)}

resurrector:
  enabled: true # false: lost VMs are reported, and not rebuilt

clouds:
  local:
    provider: qemu
    directory: {_quoted(cloud_directory)}
    stemcells: {_quoted(stemcells)}
    accel: auto # kvm where it boots the stemcell's kernel, tcg elsewhere
"""


def real_machine(nats: EmbeddedNats | ClusterNats, directory: Path, state: Path) -> str:
    """A machine that systemd runs it on."""
    return f"""# The health monitor's configuration.
# Check it:        resurgam-healthmonitor --check --config {directory}/healthmonitor.yml
# Apply a change:  systemctl reload resurgam-healthmonitor  (it says in its log which keys need a restart).
# Every key is explained in docs/configuration.md.

# site: a heartbeat every 5 s, a VM is missing after 15 s. small: 2 s and 6 s, for up to some 50 VMs.
preset: site
monitor: {nats.monitor_name} # this monitor's name; a second one needs another
state_dir: {state}

# The bus: the nats-server that `systemctl start resurgam-nats` runs on this machine, or on each of three
# (docs/cluster.md).
{_bus(nats)}
http:
  listen: 127.0.0.1:25923 # the API, for the resurgam command; another address needs the token, and should be behind TLS
  token_file: {_quoted(directory / "api-token")}

# Off until you have seen it judge rightly for a while: lost VMs are reported, and not rebuilt.
resurrector:
  enabled: false
  # max_in_flight: 3
  # hourly_budget: 20

# Many VMs lost at once are not rebuilt before a person has looked, unless they are few.
# meltdown: {{share: 30%, minimum_count: 2, maximum_count: 10}}

# maintenance:
#   - {{day: sunday, at: "02:00", for: 2h, reason: backups}}

clouds:
  local: # VMs on this machine
    provider: qemu
    directory: {_quoted(state / "clouds" / "local")}
    stemcells: {_quoted(state / "stemcells")}
    accel: auto
"""


def _bus(nats: EmbeddedNats | ClusterNats) -> str:
    urls = ", ".join(json.dumps(url) for url in nats.urls)
    more = f"  ca_file: {_quoted(nats.ca)}\n" if nats.ca is not None else ""
    if nats.replicas > 1:
        more += f"  replicas: {nats.replicas} # what is acknowledged is on the disks of a majority\n"
    return f"""bus:
  urls: [{urls}]
  user: {MONITOR_USER}
  password_file: {_quoted(nats.password_path(MONITOR_USER))}
  system_user: {SYSTEM_USER} # hears at once when an agent's connection ends
  system_password_file: {_quoted(nats.password_path(SYSTEM_USER))}
{more}
# What agents are told. VMs elsewhere need the bus's address as they see it: bus_urls: ["tls://bus.example:4222"]
agents:
  user: {AGENT_USER}
  password_file: {_quoted(nats.password_path(AGENT_USER))}
"""


def _quoted(path: Path) -> str:
    """JSON's strings are YAML's."""
    return json.dumps(str(path))
