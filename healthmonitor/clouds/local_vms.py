"""VMs of the providers of this machine, as far as all of them are made, found and deleted alike.

Laws:
- The record comes first, under the idempotency key; whoever repeats the creation goes on from it.
- A VM that was fenced is never completed. One is deleted only with a proof, which outlives it as a tombstone.

Does not know: what a VM is (`complete`, `remove`: qemu.py, docker.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
    FenceProof,
    Power,
    Unfenced,
    VmObservation,
    VmRequest,
    VmSummary,
)
from healthmonitor.clouds.local_store import LocalStore, Stage, VmRecord
from healthmonitor.clouds.stemcell import Stemcell
from protocol.ids import CloudName, VmCid

LOCK_SECONDS = 30.0
CREATE_SECONDS = 240.0


class LocalVms:
    def __init__(self, cloud: CloudName, store: LocalStore) -> None:
        self._cloud = cloud
        self._store = store

    async def create(
        self,
        request: VmRequest,
        stemcell: Stemcell,
        complete: Callable[[VmRecord, VmRequest], Awaitable[None]],
        forward_ports: tuple[str, ...] = (),
    ) -> VmCid:
        """`complete`: from whatever an interrupted creation left, to a VM that runs."""
        async with deadline(f"creating {request.key}", CREATE_SECONDS):
            async with self._store.locked("creation", LOCK_SECONDS):
                record = self._store.vm_of_key(request.key)
                if record is None:
                    record = VmRecord(
                        cid=self._store.new_vm_cid(request.key),
                        key=request.key,
                        name=request.name,
                        stemcell=f"{stemcell.manifest.name}:{stemcell.manifest.digest}",
                        cpus=request.cpus,
                        memory_mib=request.memory_mib,
                        tags=dict(request.tags),
                        forward_ports=forward_ports,
                    )
                    await self._store.write_vm(record)
            async with self._store.locked(record.cid, CREATE_SECONDS):
                record = self._store.read_vm(record.cid) or record
                if record.stage is Stage.CREATING:
                    if self._store.read_proof(record.cid) is not None:
                        raise CloudRefused(
                            f"{record.cid} was fenced before it was complete; delete it, then create anew"
                        )
                    await complete(record, request)
                    record = self._store.read_vm(record.cid) or record
                    await self._store.write_vm(dataclasses.replace(record, stage=Stage.CREATED))
        return record.cid

    def find(self, key: str) -> VmCid | None:
        record = self._store.vm_of_key(key)
        return record.cid if record is not None else None

    def unrecorded(self, vm: VmCid) -> VmObservation:
        """What is to be said of a VM that has no record."""
        buried = self._store.read_tombstone(vm)
        return VmObservation(Power.GONE, f"deleted; {buried.evidence}" if buried else f"no record of {vm}")

    def unknown(self, vm: VmCid) -> Unfenced:
        return Unfenced(
            vm, f"{vm} is not known to cloud {self._cloud} on this machine; if it was made elsewhere, fence it there"
        )

    async def summaries(self, observe: Callable[[VmCid], Awaitable[VmObservation]]) -> list[VmSummary]:
        records = self._store.vms()
        seen = await asyncio.gather(*(observe(record.cid) for record in records))
        return [
            VmSummary(record.cid, record.key, observation.power, record.tags)
            for record, observation in zip(records, seen, strict=True)
        ]


def require_fenced(vm: VmCid, fenced: FenceProof | Unfenced) -> FenceProof:
    """CloudUnavailable without a proof: nothing is deleted that may still run."""
    if isinstance(fenced, Unfenced):
        raise CloudUnavailable(f"{vm} is not deleted while it may run: {fenced.reason}")
    return fenced


@asynccontextmanager
async def deadline(what: str, seconds: float) -> AsyncIterator[None]:
    """CloudUnavailable when the body has no end in time: its outcome is unknown."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise CloudUnavailable(f"{what}: no end within {seconds:g} s; look again, then repeat") from None
