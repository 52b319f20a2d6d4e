"""Looks in the clouds, now and then, for VMs that nobody names, and removes those that are left over.

Laws:
- Clouds are asked first and the journal is read anew after: what was asked of a cloud stands in the journal by then.
- Nothing is removed while a record cannot be read, or a person has paused; nor in the first lease after this monitor
  began to lead; nor before the VM was left over in two sweeps, `stray_sweep_seconds` apart.
- Fenced with proof, then deleted, each after looking once more that still nobody names it. Without a proof it stays, is
  shown, and is tried again after a growing delay. Its disks are not touched.

Does not know: which VM is left over (core/strays).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from healthmonitor.clouds.cloud import CloudError, CloudUnavailable, FenceProof, Unfenced
from healthmonitor.core.policy import Policy
from healthmonitor.core.spares import KEY_PREFIX, RETIRED_EVENT
from healthmonitor.core.strays import FORGOTTEN_EVENT, GENERATION_FIELD, Known, Listed, Standing, Stray, judge, place_of
from healthmonitor.steps.context import Tools
from protocol.bus import BusUnavailable
from protocol.ids import CloudName, Generation, InstanceId, VmCid, split_instance_id

_DOUBLINGS_MAX = 30

T = TypeVar("T")
Place = tuple[CloudName, VmCid]

log = structlog.get_logger("sweeper")


@dataclass(slots=True)
class _Seen:
    listed: Listed
    standing: Standing
    why: str
    first_at: float  # the loop's clock: since when it has this standing
    sweeps: int = 0
    attempts: int = 0
    next_try_at: float = 0.0
    problem: str = ""


class Sweeper:
    def __init__(self, tools: Tools, policy: Callable[[], Policy]) -> None:
        self._tools = tools
        self._policy = policy
        self._seen: dict[Place, _Seen] = {}
        self._answered: dict[CloudName, tuple[float, float]] = {}  # when first and last, since this monitor leads
        self._forgotten: dict[InstanceId, Generation] = {}
        self._retired: frozenset[str] = frozenset()
        self._looked_up: frozenset[str] = frozenset()
        self._operation_over = asyncio.Event()

    def strays(self) -> tuple[Stray, ...] | None:
        """Those seen in two sweeps; None while that is not known: this monitor does not lead, or not for so long that
        what a former leader saw could be confirmed, or a cloud has never answered it."""
        seconds = self._policy().resurrection.stray_sweep_seconds
        spans = (self._answered.get(name, (0.0, 0.0)) for name in self._tools.clouds)
        if not all(last - first >= seconds for first, last in spans):
            return None
        return tuple(
            Stray(seen.listed, seen.standing, seen.why, seen.problem)
            for seen in self._seen.values()
            if self._is_confirmed(seen)
        )

    def operation_ended(self) -> None:
        """What it gave up may still come to be: looked at soon."""
        self._operation_over.set()

    async def run(self) -> None:
        """While this monitor leads, until cancelled."""
        self._seen.clear()
        self._looked_up = frozenset()
        try:
            await asyncio.sleep(self._policy().liveness.lease_seconds)
            while True:
                self._operation_over.clear()
                try:
                    await self._sweep()
                except BusUnavailable as error:
                    log.warning("not swept: the journal is not reached", error=str(error))
                except Exception:
                    # The edge of the sweeper's task: a defect in it must not end the resurrector.
                    log.exception("sweep failed by a defect; swept again at its time")
                await self._pause()
        finally:
            self._answered.clear()

    async def _pause(self) -> None:
        policy = self._policy().resurrection
        apart = min(policy.stray_sweep_apart_seconds, policy.stray_sweep_seconds)
        await asyncio.sleep(apart)
        try:
            async with asyncio.timeout(policy.stray_sweep_seconds - apart):
                await self._operation_over.wait()
        except TimeoutError:
            pass

    async def _sweep(self) -> None:
        listed, answered = await self._listed()
        await self._tools.journal.reload()
        if not self._tools.is_leader():
            return
        corrupt = self._tools.journal.corrupt()
        if corrupt:
            log.warning("not swept: an unreadable record may name any VM", records=[str(error) for error in corrupt])
            return
        await self._look_up(listed)
        now = asyncio.get_running_loop().time()
        self._answered.update({name: (self._answered.get(name, (now, now))[0], now) for name in answered})
        present = {(vm.cloud, vm.vm_cid) for vm in listed}
        for vm, standing, why in judge(listed, self._known()):
            self._note(vm, standing, why, now)
        for place in [place for place in self._seen if place[0] in answered and place not in present]:
            del self._seen[place]
        due = [
            seen
            for seen in self._seen.values()
            if seen.standing is Standing.LEFT_OVER and self._is_confirmed(seen) and seen.next_try_at <= now
        ]
        for seen in due:
            await self._remove(seen)

    async def _listed(self) -> tuple[list[Listed], set[CloudName]]:
        """And which clouds answered: of the others nothing new is known."""
        listed: list[Listed] = []
        answered: set[CloudName] = set()
        seconds = self._policy().resurrection.cloud_call_seconds
        for name, cloud in self._tools.clouds.items():
            try:
                found = await self._call(name, "list_vms", cloud.list_vms, seconds)
            except CloudError as error:
                log.warning("cloud not swept", cloud=name, error=str(error))
                continue
            answered.add(name)
            listed += [Listed(name, vm.vm_cid, vm.key, vm.tags) for vm in found]
        return listed, answered

    async def _look_up(self, listed: list[Listed]) -> None:
        """Of VMs whose instance, or spare, has no record: whether the timeline says that it was deleted on purpose."""
        journal = self._tools.journal
        places = (place_of(vm) for vm in listed)
        gone = frozenset(str(place[0]) for place in places if place is not None and journal.instance(place[0]) is None)
        gone |= {vm.key for vm in listed if vm.key.startswith(KEY_PREFIX) and journal.spare(vm.key) is None}
        if gone == self._looked_up:
            return
        found: dict[InstanceId, Generation] = {}
        retired: set[str] = set()
        for entry in await self._tools.journal.events_since(0.0):
            event = entry.event
            if event.kind == FORGOTTEN_EVENT and event.subject in gone:
                instance = InstanceId(event.subject)
                generation = Generation(int(event.fields.get(GENERATION_FIELD, "0")))
                found[instance] = max(generation, found.get(instance, generation))
            elif event.kind == RETIRED_EVENT:
                retired.add(event.subject)
        self._forgotten, self._retired, self._looked_up = found, frozenset(retired), gone

    def _known(self) -> Known:
        journal = self._tools.journal
        return Known(journal.instances(), journal.operations(), self._forgotten, journal.spares(), self._retired)

    def _note(self, vm: Listed, standing: Standing, why: str, now: float) -> None:
        place = (vm.cloud, vm.vm_cid)
        if standing in (Standing.NAMED, Standing.WAITING):
            self._seen.pop(place, None)
            return
        seen = self._seen.get(place)
        if seen is None or seen.standing is not standing:
            seen = self._seen[place] = _Seen(vm, standing, why, now)
        seen.listed, seen.why = vm, why
        seen.sweeps += 1

    def _is_confirmed(self, seen: _Seen) -> bool:
        age = asyncio.get_running_loop().time() - seen.first_at
        return seen.sweeps >= 2 and age >= self._policy().resurrection.stray_sweep_seconds

    def _may_go(self, seen: _Seen) -> bool:
        """Looked at again after everything that was awaited."""
        ((_, standing, _),) = judge([seen.listed], self._known())
        return self._tools.is_leader() and standing is Standing.LEFT_OVER

    def _held_back(self, seen: _Seen) -> str:
        switches, now = self._tools.journal.switches(), self._tools.unix_time()
        if switches.paused_until > now:
            return f"paused by {switches.paused_by or 'a person'}"
        place = place_of(seen.listed)
        if place is None:
            return ""
        return self._tools.maintenance(split_instance_id(place[0])[0])

    async def _remove(self, seen: _Seen) -> None:
        held = self._held_back(seen)
        if held or not self._may_go(seen):
            log.info("left-over VM not removed now", vm=seen.listed.vm_cid, reason=held or "it is named again")
            return
        policy, cid, cloud = self._policy().resurrection, seen.listed.vm_cid, self._tools.clouds[seen.listed.cloud]
        if not seen.attempts:
            await self._tell(seen, "vm.left_over", f"{seen.why}, and nobody names it; it is fenced and deleted")
        try:
            result = await self._call(cloud.name, "fence", lambda: cloud.fence(cid), policy.fence_seconds)
            match result:
                case FenceProof(vm_cid=proven, evidence=evidence) if proven == cid:
                    if not self._may_go(seen):
                        return
                    await self._call(cloud.name, "delete_vm", lambda: cloud.delete_vm(cid), policy.cloud_call_seconds)
                case FenceProof(vm_cid=other):
                    await self._failed(seen, f"the cloud proved {other} instead: a defect of its provider")
                    return
                case Unfenced(reason=reason):
                    await self._failed(seen, f"no proof that it is off: {reason}")
                    return
        except CloudError as error:
            await self._failed(seen, str(error))
            return
        self._seen.pop((seen.listed.cloud, cid), None)
        await self._tell(seen, "vm.left_over_deleted", f"fenced ({evidence}) and deleted: {seen.why}")

    async def _failed(self, seen: _Seen, problem: str) -> None:
        policy = self._policy().resurrection
        seen.attempts += 1
        delay = policy.stray_sweep_seconds * 2.0 ** min(seen.attempts - 1, _DOUBLINGS_MAX)
        seen.next_try_at = asyncio.get_running_loop().time() + min(delay, policy.stray_retry_longest_seconds)
        if problem != seen.problem:
            seen.problem = problem
            await self._tell(seen, "vm.left_over_stays", f"{seen.why}; not deleted: {problem}")

    async def _tell(self, seen: _Seen, kind: str, text: str) -> None:
        listed = seen.listed
        place = place_of(listed)
        fields = {"cloud": listed.cloud, "vm": listed.vm_cid, "key": listed.key}
        log.info(text, event_kind=kind, **fields)
        await self._tools.journal.record(
            kind, place[0] if place else listed.cloud, f"VM {listed.vm_cid}: {text}", fields
        )

    async def _call(self, cloud: CloudName, name: str, call: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        async with self._tools.cloud_turns[cloud]:
            try:
                async with asyncio.timeout(seconds):
                    result = await call()
            except TimeoutError:
                raise CloudUnavailable(f"{name}: the cloud did not answer within {seconds:g} s") from None
        self._tools.crash_point(f"cloud:sweep {name}")
        return result
