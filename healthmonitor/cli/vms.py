"""The VMs of a local site's clouds, ended from outside while its monitor is down.

Law: a VM is switched off with a proof, its record stays (so that the next `up` can build on the proof); only `--purge`
deletes. Disks are deleted by `--purge` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.clouds.cloud import Cloud, CloudError, Power, Unfenced, VmSummary
from healthmonitor.clouds.registry import LOCAL_PROVIDERS, build_cloud
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.located_yaml import ManifestErrors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalVm:
    cloud: str
    summary: VmSummary

    @property
    def runs(self) -> bool:
        return self.summary.power not in (Power.OFF, Power.GONE)


def list_vms(configuration: Path) -> list[LocalVm]:
    return asyncio.run(_in_clouds(configuration, _list))


def end_vms(configuration: Path, purge: bool, say: Callable[[str], None]) -> int:
    """How many were switched off. CliFailure when one could not be proven off."""

    async def end(name: str, cloud: Cloud) -> list[str]:
        return await _end(name, cloud, purge, say)

    return len(asyncio.run(_in_clouds(configuration, end)))


async def _in_clouds(configuration: Path, work: Callable[[str, Cloud], Awaitable[list[T]]]) -> list[T]:
    """What `work` gave for each cloud on this machine; CliFailure in the cloud's own words."""
    try:
        loaded = load_configuration(configuration)
    except ManifestErrors as wrong:
        lines = tuple(str(wrong).splitlines())
        raise CliFailure(f"{configuration} is not right", ExitCode.USAGE, "correct it", lines) from None
    found: list[T] = []
    for name, options in loaded.configuration.clouds.items():
        if options.provider not in LOCAL_PROVIDERS:
            continue
        cloud = build_cloud(options, Path(loaded.configuration.state_dir))
        try:
            found += await work(name, cloud)
        except CloudError as error:
            raise CliFailure(f"cloud {name}: {error}") from None
        finally:
            await cloud.close()
    return found


async def _list(name: str, cloud: Cloud) -> list[LocalVm]:
    return [LocalVm(name, summary) for summary in await cloud.list_vms()]


async def _end(name: str, cloud: Cloud, purge: bool, say: Callable[[str], None]) -> list[str]:
    ended: list[str] = []
    for vm in await cloud.list_vms():
        if vm.power not in (Power.OFF, Power.GONE):
            say(f"switching off {vm.vm_cid} …")
            ended.append(vm.vm_cid)
        proof = await cloud.fence(vm.vm_cid)
        if isinstance(proof, Unfenced):
            raise CliFailure(
                f"cloud {name}: {vm.vm_cid} cannot be proven off: {proof.reason}",
                ExitCode.FAILED,
                "look at its process, then run `resurgam down` again",
            )
        if purge:
            await cloud.delete_vm(vm.vm_cid)
    if purge:
        for disk in await cloud.list_disks():
            await cloud.delete_disk(disk.disk_cid)
    return ended
