"""Keeps spare VMs: makes them, tells them which images to have, removes them; while this monitor leads.

Laws:
- A spare's intent (key, agent id) is written before its cloud is asked for it, and each act may be repeated: another
  monitor goes on from the record.
- No VM is deleted without a proof that it is off, and none whose record somebody else changed meanwhile.
- A spare that fails is shown, and tried again after a growing delay; nothing here holds up an operation.

Does not know: how many there should be (core/spares), who takes one (steps/spare_vm).
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar, assert_never

import structlog

from healthmonitor.agent_client import BusUnavailable, NoResponders, RequestRefused
from healthmonitor.clouds.cloud import Cloud, CloudError, CloudUnavailable, FenceProof, Power, Unfenced, VmRequest
from healthmonitor.core import spares as rules
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.operation import retry_delay_seconds
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import SparePool, SpareRecord, SpareState
from healthmonitor.core.spares import Forget, GiveBack, Make, Retire, SpareImage, Want
from healthmonitor.journal import CorruptRecord, Superseded
from healthmonitor.steps.context import Tools, lasting_properties
from protocol import codec
from protocol.heartbeat import EngineState
from protocol.ids import AgentId, Generation
from protocol.settings import AgentSettings

_ENTROPY_BYTES = 32
_KEY_CHARACTERS = 16

T = TypeVar("T")

log = structlog.get_logger("spares")


class Spares:
    def __init__(self, tools: Tools, policy: Callable[[], Policy], judgement: Callable[[], Judgement | None]) -> None:
        self._tools = tools
        self._policy = policy
        self._judgement = judgement
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[SparePool, tuple[int, float]] = {}  # that never came up: how many, held until
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """While this monitor leads, until cancelled."""
        self._failures.clear()
        self._tasks.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                try:
                    await self._turn(group)
                except (Superseded, BusUnavailable, CorruptRecord) as error:
                    log.info("turn not finished; the next looks again", error=str(error))
                except Exception:
                    # The edge of this task: a defect in it must not end the resurrector.
                    log.exception("spares failed by a defect; looked at again")
                    await asyncio.sleep(self._policy().resurrection.retry_longest_seconds)
                await self._pause(self._policy().spares.look_seconds)

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        journal = self._tools.journal
        if not (self._policy().spares.per_size or journal.spares()) or not self._tools.is_leader():
            return
        wanted = self._wanted()
        paused = journal.switches().paused_until > self._tools.unix_time()
        if not paused:
            for act in rules.decide(self._inputs(wanted)):
                await self._carry_out(act)
        for key, spare in journal.spares().items():
            work = self._work(spare, wanted, paused)
            if work is not None and key not in self._tasks and spare.next_try_at <= self._tools.unix_time():
                task = group.create_task(self._try(key, work), name=f"spare {key}")
                self._tasks[key] = task
                task.add_done_callback(functools.partial(self._ended, key))

    def _wanted(self) -> dict[SparePool, Want]:
        return rules.wanted(
            self._tools.journal.deployments().values(),
            self._tools.journal.instances().values(),
            self._policy().spares,
            lambda cloud, properties: lasting_properties(self._tools.clouds.get(cloud), properties),
            self._tools.stemcell_version,
        )

    def _inputs(self, wanted: Mapping[SparePool, Want]) -> rules.Inputs:
        journal, judgement, now = self._tools.journal, self._judgement(), self._tools.unix_time()
        return rules.Inputs(
            policy=self._policy().spares,
            wanted={pool: want for pool, want in wanted.items() if pool.cloud in self._tools.clouds},
            spares=journal.spares(),
            instances=journal.instances(),
            operations=journal.operations(),
            deployments=tuple(journal.deployments().values()),
            lost=judgement.lost_spares if judgement is not None else {},
            held_pools=frozenset(pool for pool, (_, until) in self._failures.items() if now < until),
        )

    async def _carry_out(self, act: rules.Act) -> None:
        journal = self._tools.journal
        match act:
            case Make(pool=pool, version=version):
                key = f"{rules.KEY_PREFIX}{self._tools.new_id()[-_KEY_CHARACTERS:]}"
                made = SpareRecord(key, pool, AgentId(self._tools.new_id()), self._tools.unix_time(), version)
                await self._save(made, None, "intended")
            case Retire(key=key, why=why):
                spare = journal.spare(key)
                if spare is not None:
                    await self._retire(spare, why)
            case GiveBack(key=key):
                spare = journal.spare(key)
                if spare is not None:
                    free = replace(spare, state=SpareState.READY, taken_by=None, taken_generation=Generation(0))
                    await self._save(free, spare, "given back")
                    await self._tell("spare.given_back", spare, f"{spare.taken_by} did not come to use it")
            case Forget(key=key):
                spare = journal.spare(key)
                if spare is not None:
                    await journal.delete_spare(spare)
                    self._tools.crash_point("journal:spare forgotten")
            case _:
                assert_never(act)

    def _work(
        self, spare: SpareRecord, wanted: Mapping[SparePool, Want], paused: bool
    ) -> Callable[[SpareRecord], Coroutine[Any, Any, None]] | None:
        match spare.state:
            case SpareState.MAKING if not paused:
                return self._bring_up
            case SpareState.RETIRING if not paused:
                return self._remove
            case SpareState.READY:
                images = wanted[spare.pool].images if spare.pool in wanted else ()
                if {image.key for image in images} - set(spare.images):
                    return functools.partial(self._fetch_images, images=images)
        return None

    async def _try(self, key: str, work: Callable[[SpareRecord], Coroutine[Any, Any, None]]) -> None:
        spare = self._tools.journal.spare(key)
        if spare is None:
            return
        try:
            try:
                await work(spare)
            except (CloudError, NoResponders, BusUnavailable, RequestRefused) as error:
                await self._failed(key, str(error))
        except (Superseded, BusUnavailable, CorruptRecord) as error:
            log.info("spare looked at again", spare=key, reason=str(error))
        except Exception:
            # The edge of one spare's task: a defect in it must not end the others.
            log.exception("spare failed by a defect; tried again", spare=key)
            await asyncio.sleep(self._policy().resurrection.retry_longest_seconds)

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        """What is left to do is seen at the next look: what cannot be done now must not be tried in a spin."""
        if self._tasks.get(key) is task:
            del self._tasks[key]

    # One spare.

    async def _bring_up(self, spare: SpareRecord) -> None:
        if spare.vm_cid is None:
            request = self._request(spare)
            cloud = self._cloud(spare)
            cid = await self._call(spare, "create_vm", lambda: cloud.create_vm(request))
            spare = await self._save(replace(spare, vm_cid=cid, error="", attempts=0), spare, "made")
        why = await self._until_up(spare)
        if why:
            failures = self._failures.get(spare.pool, (0, 0.0))[0] + 1
            delay = retry_delay_seconds(failures, self._policy().resurrection)
            self._failures[spare.pool] = failures, self._tools.unix_time() + delay
            await self._retire(spare, why)
            return
        self._failures.pop(spare.pool, None)
        await self._save(replace(spare, state=SpareState.READY, error="", attempts=0), spare, "ready")
        seconds = self._tools.unix_time() - spare.made_at
        await self._tell("spare.ready", spare, f"{spare.pool}: made in {seconds:.1f} s")

    async def _until_up(self, spare: SpareRecord) -> str:
        """ "" once its agent was heard and says that its engine is up; otherwise why that will not be."""
        policy = self._policy()
        loop = asyncio.get_running_loop()
        until = loop.time() + policy.resurrection.agent_boot_seconds
        next_look_at = loop.time() + policy.resurrection.boot_look_seconds
        while True:
            heartbeat = self._tools.fleet.last_heartbeat(spare.agent_id)
            extension = heartbeat.resurgam if heartbeat is not None else None
            if extension is not None and extension.engine is EngineState.UP:
                return ""
            now = loop.time()
            if now >= until:
                return f"its agent was not heard with its engine up within {policy.resurrection.agent_boot_seconds:g} s"
            if now >= next_look_at:
                if await self._power(spare) is Power.OFF:
                    return "the cloud says that it is off before its agent was heard"
                next_look_at = loop.time() + policy.resurrection.boot_look_seconds
            await asyncio.sleep(policy.turn_seconds)

    async def _power(self, spare: SpareRecord) -> Power:
        cloud, cid = self._cloud(spare), spare.vm_cid
        assert cid is not None
        try:
            seen = await self._call(
                spare, "observe", lambda: cloud.observe(cid), self._policy().liveness.observe_timeout_seconds
            )
        except CloudError:
            return Power.UNKNOWN  # asked again at the next look
        return seen.power

    async def _fetch_images(self, spare: SpareRecord, images: tuple[SpareImage, ...]) -> None:
        """From where its containers would get them: registries, or the store on the bus; no faster than a VM may."""
        if self._tools.fleet.verdict(spare.agent_id) is not Verdict.ALIVE:
            return
        policy = self._policy()
        answer = await self._tools.agents.call_task(
            spare.agent_id,
            Generation(0),
            "fetch_images",
            [
                {"image": image.image, "policy": image.policy.value, "pinned": codec.to_plain(image.pinned)}
                for image in images
            ],
            policy.images.rate_bytes,
            timeout_seconds=policy.spares.images_seconds,
            answer_seconds=policy.resurrection.agent_call_seconds,
        )
        lacking = dict(answer["failed"]) if isinstance(answer, dict) and isinstance(answer.get("failed"), dict) else {}
        had = tuple(image.key for image in images if image.image not in lacking)
        error = "; ".join(f"{image}: {why}" for image, why in sorted(lacking.items()))
        attempts = spare.attempts + 1 if error else 0
        delay = retry_delay_seconds(attempts, policy.resurrection)
        told = replace(
            spare,
            images=had,
            images_error=error,
            error="",
            attempts=attempts,
            next_try_at=self._tools.unix_time() + delay if error else 0.0,
        )
        await self._save(told, spare, "images")

    async def _retire(self, spare: SpareRecord, why: str) -> None:
        retiring = replace(spare, state=SpareState.RETIRING, error="", images_error="", attempts=0, next_try_at=0.0)
        await self._save(retiring, spare, "retiring")
        await self._tell("spare.retiring", spare, why)

    async def _remove(self, spare: SpareRecord) -> None:
        cloud, policy = self._cloud(spare), self._policy().resurrection
        cid = spare.vm_cid
        if cid is None:
            cid = await self._call(spare, "find_vm", lambda: cloud.find_vm(spare.key))
        evidence = spare.fence_proof or "the cloud knows no VM under its key"
        if cid is not None:
            found = cid
            if not spare.fence_proof:
                result = await self._call(spare, "fence", lambda: cloud.fence(found), policy.fence_seconds)
                if isinstance(result, Unfenced) or result.vm_cid != found:
                    reason = result.reason if isinstance(result, Unfenced) else "the cloud proved another VM"
                    await self._failed(spare.key, f"no proof that {found} is off: {reason}")
                    return
                assert isinstance(result, FenceProof)
                evidence = result.evidence
                spare = await self._save(replace(spare, vm_cid=found, fence_proof=evidence), spare, "fenced")
            await self._call(spare, "delete_vm", lambda: cloud.delete_vm(found))
        # The timeline is what tells a VM of this key that turns up later from one of a journal that was lost.
        await self._tell(rules.RETIRED_EVENT, spare, f"fenced ({evidence}) and deleted")
        await self._tools.journal.delete_spare(spare)
        self._tools.crash_point("journal:spare retired")

    async def _failed(self, key: str, error: str) -> None:
        spare = self._tools.journal.spare(key)
        if spare is None:
            return
        policy = self._policy().resurrection
        attempts = spare.attempts + 1
        delay = retry_delay_seconds(attempts, policy)
        failed = replace(spare, error=error, attempts=attempts, next_try_at=self._tools.unix_time() + delay)
        await self._save(failed, spare, "failed")
        if error != spare.error:
            await self._tell("spare.failed", spare, f"{error}; tried again")

    def _request(self, spare: SpareRecord) -> VmRequest:
        liveness, pool = self._policy().liveness, spare.pool
        return VmRequest(
            key=spare.key,
            name=spare.key,
            stemcell=pool.stemcell,
            cpus=pool.cpus,
            memory_mib=pool.memory_mib,
            settings=AgentSettings(
                agent_id=spare.agent_id,
                bus=self._tools.agent_bus_settings(spare.agent_id),
                hostname=spare.key,
                heartbeat_interval_seconds=liveness.heartbeat_interval_seconds,
                lease_seconds=liveness.lease_seconds,
                entropy=base64.b64encode(self._tools.random_bytes(_ENTROPY_BYTES)).decode(),
                unix_time=self._tools.unix_time(),
            ).with_registries(self._tools.registries()),
            cloud_properties=codec.from_json(dict[str, Any], pool.properties.encode()),
            tags={"spare": spare.key},
        )

    # Tools.

    def _cloud(self, spare: SpareRecord) -> Cloud:
        cloud = self._tools.clouds.get(spare.pool.cloud)
        if cloud is None:
            raise CloudUnavailable(f"cloud {spare.pool.cloud} is not in the configuration; add it and restart")
        return cloud

    async def _call(
        self, spare: SpareRecord, name: str, call: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None
    ) -> T:
        """Within its deadline, and only while this monitor leads and nobody changed the record."""
        limit = self._policy().resurrection.cloud_call_seconds if seconds is None else seconds
        async with self._tools.cloud_turns[spare.pool.cloud]:
            self._check_ours(spare)
            try:
                async with asyncio.timeout(limit):
                    result = await call()
            except TimeoutError:
                raise CloudUnavailable(f"{name}: the cloud did not answer within {limit:g} s") from None
        self._tools.crash_point(f"cloud:spare {name}")
        self._check_ours(spare)
        return result

    async def _save(self, spare: SpareRecord, replacing: SpareRecord | None, why: str) -> SpareRecord:
        if not self._tools.is_leader():
            raise Superseded("this monitor does not lead any more")
        await self._tools.journal.save_spare(spare, replacing)
        self._tools.crash_point(f"journal:spare {why}")
        return spare

    def _check_ours(self, spare: SpareRecord) -> None:
        if not self._tools.is_leader() or self._tools.journal.spare(spare.key) != spare:
            raise Superseded(f"spare {spare.key} was changed meanwhile, or another monitor leads")

    async def _tell(self, kind: str, spare: SpareRecord, text: str) -> None:
        fields = {"cloud": spare.pool.cloud, "vm": spare.vm_cid or "", "key": spare.key}
        log.info(text, event_kind=kind, **fields)
        await self._tools.journal.record(kind, spare.key, text, fields)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
