"""How the monitor's process begins: what is wrong with the configuration is said before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest

from healthmonitor.clouds.cloud import Cloud
from healthmonitor.configuration_file import LoadedConfiguration, Secrets
from healthmonitor.core.configuration import CloudConfiguration, Configuration
from healthmonitor.core.located_yaml import ManifestError, ManifestErrors
from healthmonitor.service import Service
from protocol.ids import CloudName
from protocol.systemd_notify import SystemdNotify


async def test_a_cloud_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    """Its errors come out as they are, not wrapped and not after waiting for a bus that is not there."""
    configuration = Configuration(clouds={CloudName("local"): CloudConfiguration(CloudName("local"), "qemu")})

    def build(cloud: CloudConfiguration) -> Cloud:
        raise ManifestErrors([ManifestError("hm.yml", 3, 1, f"clouds.{cloud.name}", "is wrong")])

    service = Service(LoadedConfiguration(configuration, Secrets()), tmp_path / "hm.yml", SystemdNotify({}), build)
    with pytest.raises(ManifestErrors, match=r"hm\.yml:3"):
        await service.run()
