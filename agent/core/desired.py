"""What this VM should be running: the specification that the centre gave, and what a person said since.

Laws: a specification for another instance or another generation is refused, and one with a lower revision than was
ever seen. A person's word (start, stop) holds for the revision it was said under: a newer specification says itself
what is stopped. A drain holds until the VM reboots, until `start`, or until a newer specification.

Does not know: where this is kept (agent/store.py), who carries it out (agent/supervisor.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from agent.core import dependencies
from agent.core.disk_safety import disk_fault
from protocol.ids import ContainerName, Generation, InstanceId, Revision, split_instance_id
from protocol.spec import InstanceSpec, Wanted


@dataclass(frozen=True, slots=True)
class Word:
    """What a person said. It replaces `wanted` and `stopped_containers` of the specification of that revision."""

    revision: Revision
    wanted: Wanted
    stopped: tuple[ContainerName, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """All of it, as it is kept over restarts. `drained_boot`: the boot during which a drain was asked for."""

    spec: InstanceSpec | None = None
    word: Word | None = None
    drained_boot: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Which instance a VM fills, as whose VM of what generation. A spare's settings name none: it is told later."""

    instance: InstanceId
    generation: Generation
    hostname: str = ""


class Refused(Exception):
    """The request cannot be granted; the text says why. Repeating it will not help."""


def accept(held: Held, seen: Revision, spec: InstanceSpec, instance: InstanceId | None, generation: Generation) -> Held:
    """`held` after the centre's `spec`; Refused. Equal revisions are the same specification, said again."""
    if instance is None and held.spec is not None:
        instance = held.spec.instance
    if instance is not None and spec.instance != instance:
        raise Refused(f"this VM is {instance}, the specification is for {spec.instance}")
    if spec.generation != generation:
        raise Refused(f"this VM is of generation {generation}, the specification is for generation {spec.generation}")
    if spec.revision < seen:
        raise Refused(f"revision {spec.revision} is older than revision {seen}, which was applied before")
    names = [container.name for container in spec.containers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Refused(f"containers {', '.join(twice)} are specified twice")
    try:
        dependencies.check(spec.containers)
    except dependencies.BadDependencies as error:
        raise Refused(str(error)) from None
    for disk in spec.disks:
        fault = disk_fault(disk)
        if fault is not None:
            raise Refused(fault)
    if held.spec is not None and spec.revision == held.spec.revision:
        return dataclasses.replace(held, spec=spec)
    return Held(spec=spec)


def become(settled: InstanceId | None, present: Place | None, wanted: Place) -> Place:
    """Which instance a VM fills after it was told; Refused. `settled`: by its settings, for good. Once told, it is as
    if the settings had said so: a spare is never two instances'."""
    if settled is not None:
        raise Refused(f"this VM was made for {settled}; it is no spare")
    if present is not None and (present.instance, present.generation) != (wanted.instance, wanted.generation):
        raise Refused(f"this VM is {present.instance}, generation {present.generation}, already")
    if wanted.generation <= 0:
        raise Refused(f"generation {wanted.generation}: an instance's begin with 1")
    try:
        split_instance_id(wanted.instance)
    except ValueError:
        raise Refused(f"{wanted.instance!r} is no instance's id") from None
    return wanted


def belongs(held: Held, instance: InstanceId | None, generation: Generation) -> bool:
    """Whether what was kept is this VM's: a disk image may have been another's before."""
    spec = held.spec
    return spec is None or (spec.generation == generation and (instance is None or spec.instance == instance))


def effective(held: Held) -> InstanceSpec | None:
    """The specification with a person's word in it: what the supervisor is to carry out."""
    if held.spec is None or held.word is None or held.word.revision != held.spec.revision:
        return held.spec
    return dataclasses.replace(held.spec, wanted=held.word.wanted, stopped_containers=held.word.stopped)


def start(held: Held, names: tuple[ContainerName, ...]) -> Held:
    """All (`names` empty) or these; starting one of a stopped instance leaves the others stopped. Ends a drain."""
    spec = _known(held, names)
    if not names:
        stopped: frozenset[ContainerName] = frozenset()
    elif spec.wanted is Wanted.STOPPED:
        stopped = frozenset(container.name for container in spec.containers) - set(names)
    else:
        stopped = frozenset(spec.stopped_containers) - set(names)
    return dataclasses.replace(held, word=_word(spec, Wanted.STARTED, stopped), drained_boot="")


def stop(held: Held, names: tuple[ContainerName, ...]) -> Held:
    spec = _known(held, names)
    if not names:
        return dataclasses.replace(held, word=_word(spec, Wanted.STOPPED, frozenset(spec.stopped_containers)))
    return dataclasses.replace(held, word=_word(spec, spec.wanted, {*spec.stopped_containers, *names}))


def restartable(held: Held, names: tuple[ContainerName, ...]) -> tuple[ContainerName, ...]:
    """Those of `names` (empty: all) to restart. Refused when one that was named is stopped by a person's word."""
    spec = _known(held, names)
    if spec.wanted is Wanted.STOPPED:
        raise Refused(f"{spec.instance} is stopped; start it")
    stopped = [name for name in names if name in spec.stopped_containers]
    if stopped:
        raise Refused(f"{', '.join(stopped)} is stopped; start it")
    return names or tuple(item.name for item in spec.containers if item.name not in spec.stopped_containers)


def _known(held: Held, names: tuple[ContainerName, ...]) -> InstanceSpec:
    spec = effective(held)
    if spec is None:
        raise Refused("this VM has no specification yet; apply one")
    known = {container.name for container in spec.containers}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refused(f"no container {', '.join(unknown)} in {spec.instance}; there are {', '.join(sorted(known))}")
    return spec


def _word(spec: InstanceSpec, wanted: Wanted, stopped: frozenset[ContainerName] | set[ContainerName]) -> Word:
    return Word(revision=spec.revision, wanted=wanted, stopped=tuple(sorted(stopped)))
