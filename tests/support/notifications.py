"""Notifications for tests: an ordinary one, one full of what an attacker would write, one of many items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from healthmonitor.channels.channel import Item, Notification, Transition
from healthmonitor.core.records import Incident, Severity

AT = 1_795_363_200.0

INCIDENT = Incident(
    key="vm_missing:shop/db/0",
    kind="vm_missing",
    subject="shop/db/0",
    severity=Severity.CRITICAL,
    title="shop/db/0 is missing",
    detail="not heard for 15 s, and the cloud says that it is off",
    opened_at=AT - 60,
    updated_at=AT,
    next_step="resurgam status shop/db/0",
)
ITEM = Item(
    INCIDENT,
    where="shop/db/0, VM vm-7, cloud id i-0042",
    doing="resurrection: create_vm, step 7 of 13",
    facts={"exit code": "137", "memory limit": "512MiB"},
    log_lines=("started", "  at line 2", "out of memory"),
)
OPENED = Notification(
    id="n-0001",
    thread="vm_missing:shop/db/0@1795363140",
    transition=Transition.OPENED,
    severity=Severity.CRITICAL,
    at=AT,
    subject="shop/db/0 is missing",
    items=(ITEM,),
    site="hm-a",
    link="https://hm.example.org/incidents/1",
)


def notification(**changes: Any) -> Notification:
    return replace(OPENED, **changes)


def resolved() -> Notification:
    over = replace(INCIDENT, resolved_at=AT + 90, resolution="rebuilt as VM vm-8 in 43 s")
    return notification(
        id="n-0002",
        transition=Transition.RESOLVED,
        at=AT + 90,
        subject="resolved after 2m30s: shop/db/0 is missing",
        items=(replace(ITEM, incident=over, doing=""),),
    )


EVIL = (
    'x\r\nBcc: victim@example.org\r\n\r\n<script>alert(1)</script><img src="x" onerror=a>\x1b[2J\x1b]0;owned\x07'
    "\x00\x08\u202e\u2028}\"'${id}{{7*7}}%s\ud800"
)


def nasty() -> Notification:
    """Every text that may come from outside holds newlines, HTML, control characters, and one is 1 MB."""
    incident = replace(
        INCIDENT, key=EVIL, subject="shop/" + EVIL, title=EVIL, detail=EVIL + "y" * 1_000_000, next_step=EVIL
    )
    item = Item(incident, EVIL, EVIL, {EVIL: EVIL, "long": "z" * 1_000_000}, (EVIL,) * 1000)
    return notification(id="n-evil", thread=EVIL, subject=EVIL, items=(item,), site=EVIL)


def many(count: int) -> Notification:
    items = tuple(
        replace(
            ITEM,
            incident=replace(
                INCIDENT, key=f"vm_missing:shop/db/{n}", subject=f"shop/db/{n}", title=f"shop/db/{n} is missing"
            ),
        )
        for n in range(count)
    )
    return notification(id="n-many", thread="group:shop", subject=f"{count} VMs of shop are missing", items=items)
