"""A manifest as it came with a request → the manifest and what it would change.

Law: everything wrong with it is told at once: its text, and what it names that this monitor does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

from healthmonitor.core import planning
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.manifest import Manifest
from healthmonitor.core.manifest_file import check_against, parse_manifest
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.journal import Journal
from healthmonitor.operator_actions import ManifestUpload


class ManifestIntake:
    """`clouds`: the names of those configured. `stemcells`: cloud → names, of the clouds that can be asked."""

    def __init__(
        self,
        journal: Journal,
        clouds: Callable[[], Collection[str]],
        stemcells: Callable[[], Mapping[str, Collection[str]]],
    ) -> None:
        self._journal = journal
        self._clouds = clouds
        self._stemcells = stemcells

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

    def plan(self, manifest: Manifest) -> Mapping[str, Any]:
        return planning.to_plain(self._planned(manifest))

    def check(self, manifest: Manifest) -> None:
        """NotPossible when what is there forbids it."""
        refusals = self._planned(manifest).refusals
        if refusals:
            raise NotPossible("this cannot be deployed: " + "; ".join(refusals), "nothing was changed")

    def _planned(self, manifest: Manifest) -> planning.Plan:
        current = [record for record in self._journal.instances().values() if record.deployment == manifest.name]
        before = self._journal.deployment(manifest.name)
        manifest_now = before.manifest if before is not None else None
        return planning.plan(current, manifest_now, manifest, self._journal.orphans())
