"""Which VMs that a cloud lists are left over: by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.incidents import instance_of
from healthmonitor.core.keys import vm_key
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    Incident,
    InstanceRecord,
    Operation,
    OperationKind,
    Severity,
    SparePool,
    SpareRecord,
    VmBinding,
)
from healthmonitor.core.strays import KINDS, Known, Listed, Standing, Stray, evaluate_strays, judge
from protocol.ids import AgentId, Generation, InstanceId, OperationId, Revision, VmCid
from tests.support.hands_world import CLOUD, SHOP, group, place

DB, GONE = place(), place(index=9)


def binding(generation: int, cid: str | None = None, instance: InstanceId = DB) -> VmBinding:
    number = Generation(generation)
    return VmBinding(AgentId(f"a{generation}"), number, vm_key(instance, number), None if cid is None else VmCid(cid))


RECORD = InstanceRecord(
    instance=DB,
    deployment=SHOP,
    index=0,
    group=group(),
    deployment_revision=Revision(1),
    revision=Revision(1),
    generation=Generation(3),
    vm=binding(3, "vm-3"),
)


def operation(old_vm: VmBinding | None, instance: InstanceId = DB) -> Operation:
    return rules.begin(OperationId("o"), instance, OperationKind.RECREATE, "", 0.0, old_vm)


def listed(generation: int, instance: InstanceId = DB, cid: str = "vm-x", tagged: bool = True, key: str = "") -> Listed:
    tags = {"instance": instance, "generation": str(generation)} if tagged else {}
    return Listed(CLOUD, VmCid(cid), key or vm_key(instance, Generation(generation)), tags)


def known(record: InstanceRecord | None = RECORD, forgotten: int | None = None, *operations: Operation) -> Known:
    return Known(
        {record.instance: record} if record is not None else {},
        {each.instance: each for each in operations},
        {} if forgotten is None else {GONE: Generation(forgotten)},
    )


TABLE = [
    ("the present VM", listed(3, cid="vm-3"), known(), Standing.NAMED),
    ("named by its key alone, not yet answered", listed(3), known(replace(RECORD, vm=binding(3))), Standing.NAMED),
    ("named by its id alone", listed(1, cid="vm-3"), known(), Standing.NAMED),
    ("an operation's old VM", listed(2), known(RECORD, None, operation(binding(2))), Standing.NAMED),
    ("an operation's old VM, by its id", listed(1, cid="vm-2"), known(RECORD, None, operation(binding(2, "vm-2"))),
     Standing.NAMED),
    ("an older generation", listed(2), known(), Standing.LEFT_OVER),
    ("an older generation, while another operation is under way", listed(1),
     known(RECORD, None, operation(binding(2))), Standing.LEFT_OVER),
    ("an older generation, in a cloud without tags", listed(2, tagged=False), known(), Standing.LEFT_OVER),
    ("the same generation and not the VM that is named", listed(3), known(replace(RECORD, vm=None)), Standing.UNCLEAR),
    ("the same generation, under way", listed(3), known(replace(RECORD, vm=None), None, operation(None)),
     Standing.WAITING),
    ("newer than the journal", listed(4), known(), Standing.UNCLEAR),
    ("no record, nothing written", listed(1, GONE), known(), Standing.UNCLEAR),
    ("no record, and its operation under way", listed(1, GONE), known(RECORD, 5, operation(None, GONE)),
     Standing.WAITING),
    ("deleted", listed(2, GONE), known(RECORD, 2), Standing.LEFT_OVER),
    ("newer than what was deleted", listed(3, GONE), known(RECORD, 2), Standing.UNCLEAR),
    ("an empty journal", listed(1), known(None), Standing.UNCLEAR),
    ("another's", listed(1, key="web-17", tagged=False), known(), Standing.FOREIGN),
    ("tags that do not fit the key", listed(2, key="web-17"), known(), Standing.FOREIGN),
    ("tags that are no instance", Listed(CLOUD, VmCid("v"), "k", {"instance": "x", "generation": "1"}), known(),
     Standing.FOREIGN),
    ("tags that are no number", Listed(CLOUD, VmCid("v"), "k", {"instance": DB, "generation": "one"}), known(),
     Standing.FOREIGN),
]  # fmt: skip


@pytest.mark.parametrize(("vm", "journal", "standing"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_where_a_vm_stands(vm: Listed, journal: Known, standing: Standing) -> None:
    """What is named is never left over; what is not proven left over is only reported."""
    ((seen, found, why),) = judge([vm], journal)
    assert (seen, found) == (vm, standing)
    assert why


@pytest.mark.parametrize(
    ("standing", "problem", "kinds"),
    [
        (Standing.LEFT_OVER, "", []),
        (Standing.LEFT_OVER, "no proof", ["vm_left_over"]),
        (Standing.UNCLEAR, "", ["vm_unknown"]),
        (Standing.FOREIGN, "", ["vm_unknown"]),
    ],
)
def test_what_people_are_told(standing: Standing, problem: str, kinds: list[str]) -> None:
    """One that is about to be removed is no news; one that cannot be, or must not be, is an incident about no
    instance, so that it is not taken for the instance's present VM."""
    deviations = list(evaluate_strays([Stray(listed(1, cid="a/b/c/d"), standing, "why", problem)], Policy()))
    assert [each.kind for each in deviations] == kinds
    assert set(kinds) <= KINDS
    for each in deviations:
        opened = Incident(each.key, each.kind, each.subject, Severity.ERROR, each.title, each.detail, 0.0, 0.0)
        assert instance_of(opened) == ""


def test_a_spare_is_nobodys_stray_while_it_is_known() -> None:
    """By its record, also while it is only intended, and by the instance that took it; without either it is left over
    when the timeline says that it was retired, and is only reported otherwise."""
    vm = Listed(CLOUD, VmCid("vm-s"), "spare-1", {"spare": "spare-1"})
    record = SpareRecord("spare-1", SparePool(CLOUD, "debian-12", 1, 1024), AgentId("s"), 0.0)
    took = replace(RECORD, vm=VmBinding(AgentId("s"), Generation(3), "spare-1", VmCid("vm-s"), spare=True))
    nothing = known()
    for given, standing in (
        (replace(nothing, spares={"spare-1": record}), Standing.NAMED),
        (known(took), Standing.NAMED),
        (replace(nothing, retired=frozenset({"spare-1"})), Standing.LEFT_OVER),
        (nothing, Standing.UNCLEAR),
    ):
        ((_, found, why),) = judge([vm], given)
        assert (found, bool(why)) == (standing, True)
