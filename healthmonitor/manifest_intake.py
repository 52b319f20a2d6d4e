"""A manifest as it came with a request → the manifest and what it would change.

Law: everything wrong with it is told at once: its text, and what it names that this monitor does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from healthmonitor.core import planning
from healthmonitor.core.disk_changes import DiskAbilities
from healthmonitor.core.disk_planning import DiskFacts
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.manifest import Manifest
from healthmonitor.core.manifest_file import check_against, parse_manifest
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import InstanceRecord
from healthmonitor.journal import Journal
from healthmonitor.operator_actions import ManifestUpload
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import CloudName, DiskName


class ManifestIntake:
    """`clouds`: the names of those configured. `stemcells`: cloud → names, of the clouds that can be asked.
    `abilities`: what the clouds can do with disks. `reports`: what an instance's agent last said of its disks."""

    def __init__(
        self,
        journal: Journal,
        clouds: Callable[[], Collection[str]],
        stemcells: Callable[[], Mapping[str, Collection[str]]],
        abilities: Callable[[], Mapping[CloudName, DiskAbilities]] = dict,
        reports: Callable[[InstanceRecord], Sequence[DiskReport]] = lambda record: (),
    ) -> None:
        self._journal = journal
        self._clouds = clouds
        self._stemcells = stemcells
        self._abilities = abilities
        self._reports = reports

    async def read(self, upload: ManifestUpload) -> Manifest:
        """Raises ManifestErrors. Parsing is done in a thread: a large manifest takes a second, in which heartbeats
        are heard and the lease is renewed."""
        files = upload.env_files or {}

        def read_file(path: str) -> str:
            if path not in files:
                raise FileNotFoundError(path)
            return files[path]

        parsed = await asyncio.to_thread(parse_manifest, upload.text, upload.file, upload.variables or {}, read_file)
        errors = check_against(parsed, self._clouds(), self._stemcells())
        if errors:
            raise ManifestErrors(errors)
        return parsed.manifest

    def plan(self, manifest: Manifest, migrate: bool = False) -> Mapping[str, Any]:
        """`migrate`: disks may be made smaller, by copying them."""
        return planning.to_plain(self._planned(manifest, migrate))

    def check(self, manifest: Manifest, migrate: bool = False) -> None:
        """NotPossible when what is there forbids it."""
        refusals = self._planned(manifest, migrate).refusals
        if refusals:
            raise NotPossible("this cannot be deployed: " + "; ".join(refusals), "nothing was changed")

    def _planned(self, manifest: Manifest, migrate: bool) -> planning.Plan:
        current = [record for record in self._journal.instances().values() if record.deployment == manifest.name]
        before = self._journal.deployment(manifest.name)
        manifest_now = before.manifest if before is not None else None
        used = {
            (record.instance, DiskName(report.name)): report.size_mib * report.percent / 100.0
            for record in current
            for report in self._reports(record)
            if report.state is DiskState.MOUNTED
        }
        facts = DiskFacts(self._journal.orphans(), self._abilities(), used, migrate)
        return planning.plan(current, manifest_now, manifest, facts)
