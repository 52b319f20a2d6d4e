"""What a notification says, and that text from outside does no harm in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.notifying import harmless, wording
from healthmonitor.core.notifying.notification import Item, Transition
from healthmonitor.core.notifying.thread import Member, Send, Thread
from healthmonitor.core.records import (
    Hold,
    Incident,
    InstanceRecord,
    Operation,
    OperationKind,
    Step,
    StepTiming,
    VmBinding,
)
from protocol.heartbeat import ContainerGlance, ContainerState, Reason
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    Generation,
    InstanceId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec
from tests.support.alerts import incident, over

DB = InstanceId("shop/db/0")
REDIS = ContainerSpec(ContainerName("redis"), "redis:7", mem_limit_bytes=512 * 1024 * 1024, labels={"team": "db"})
RECORD = InstanceRecord(
    instance=DB,
    deployment=DeploymentName("shop"),
    index=0,
    group=InstanceGroup("db", 1, VmSize(), "debian", CloudName("rack2"), (), (REDIS,), UpdatePolicy()),
    deployment_revision=Revision(1),
    revision=Revision(1),
    generation=Generation(2),
    vm=VmBinding(AgentId("agent-2"), Generation(2), "key", VmCid("vm-17")),
)
OPERATION = Operation(
    OperationId("op1"),
    DB,
    OperationKind.RESURRECT,
    Step.CREATE_VM,
    "its VM is missing",
    started_at=1010.0,
    old_vm=VmBinding(AgentId("agent-1"), Generation(1), "key", VmCid("vm-16")),
    step_started_at=1030.0,
)
HOSTILE = "a\r\nBcc: all@x\n<script>alert(1)</script>\x1b[2J\x1b]0;t\x07\x00\u202eevil\u200b" + "x" * 1_000_000


def send(*incidents: Incident, transition: Transition = Transition.OPENED) -> Send:
    members = tuple(Member(each.key, each.opened_at, each.severity, False, each.resolved_at) for each in incidents)
    thread = Thread("t1", 1, "r", incidents[0].kind, ("mail",), members, 1000.0, 1000.0)
    return Send(thread, transition, ("mail",), incidents)


@pytest.mark.parametrize(
    ("made", "subject"),
    [
        (send(incident(title="shop/db/0 is missing")), "[critical] shop/db/0 is missing"),
        (
            send(incident(title="shop/db/0 is missing"), transition=Transition.REPEATED),
            "[critical] still: shop/db/0 is missing",
        ),
        (
            send(incident(title="shop/db/0 is missing"), transition=Transition.ESCALATED),
            "[critical] nobody acknowledged: shop/db/0 is missing",
        ),
        (
            send(over(incident(title="shop/db/0 is missing"), 1061.0), transition=Transition.RESOLVED),
            "[resolved] shop/db/0 is missing: over after 61 s",
        ),
        (
            send(*[incident(f"shop/db/{number}") for number in range(3)], incident("web/app/1")),
            "[critical] 4 x vm missing: shop (3), web (1)",
        ),
        (
            send(over(incident("shop/db/1"), 1001.0), incident("shop/db/2"), transition=Transition.CHANGED),
            "[critical] changed: 2 x vm missing, 1 of them over: shop (2)",
        ),
    ],
)
def test_the_subject_says_what_it_is_in_one_line(made: Send, subject: str) -> None:
    """How grave, what is new about it, what, where."""
    assert wording.subject(made, made.thread.severity) == subject


def test_a_lost_vm_says_where_since_when_and_what_is_being_done() -> None:
    """Instance, the VM that was lost, its cloud; the resurrection's live step."""
    item = wording.item(incident(), RECORD, OPERATION, None, 3, 1060.0)
    assert item.where == "shop/db/0, VM vm-16 (agent agent-1), cloud rack2"
    assert item.doing.startswith("being rebuilt: being rebuilt, step create_vm: its VM is missing (for 30 s)")
    assert item.facts["since"] == "60 s"
    assert item.facts["explains"] == "3 more"
    held = replace(OPERATION, hold=Hold.UNFENCED, error="the host does not answer")
    doing = wording.item(incident(), RECORD, held, None, 0, 1060.0).doing
    assert "unfenced" in doing
    assert "the host does not answer" in doing
    assert "resurgam fence confirm shop/db/0" in doing


def test_a_container_says_how_it_ended_and_its_limit() -> None:
    """Exit code or OOM, memory limit, restarts, image."""
    glance = ContainerGlance("redis", ContainerState.CRASH_LOOP, Reason.OOM_KILLED, 7, 137)
    item = wording.item(incident("shop/db/0/redis", "container_not_running"), RECORD, None, glance, 0, 1060.0)
    assert {key: item.facts[key] for key in ("state", "reason", "exit code", "restarts", "memory limit", "image")} == {
        "state": "crash loop",
        "reason": "oom killed",
        "exit code": "137",
        "restarts": "7",
        "memory limit": "512MiB",
        "image": "redis:7",
    }
    assert "cloud rack2" in item.where


def test_the_end_says_how_long_it_lasted_and_what_mended_it() -> None:
    """The operation that was done since it opened; nothing when there was none."""
    done = replace(OPERATION, step=Step.DONE, timings=(StepTiming(Step.HEALTHY, 1040.0, 5.0),))
    assert wording.mended(incident(), done) == "mended by its resurrection in 35 s (operation op1)"
    assert wording.mended(incident(), OPERATION) == ""
    assert wording.mended(incident(at=2000.0), done) == ""
    assert wording.item(over(incident(), 5000.0), RECORD, done, None, 0, 6000.0).facts["lasted"] == "66 min"


def test_what_routes_ask_about() -> None:
    """Deployment, group, instance; the labels of the container, or of all of them."""
    about = wording.subject_of(incident("shop/db/0/redis", "container_not_running"), "shop/db/0", RECORD)
    assert (about.deployment, about.group, about.instance, about.labels) == ("shop", "db", "shop/db/0", {"team": "db"})
    assert wording.subject_of(incident("monitor", "bus_lost"), "", None).deployment == ""
    assert wording.subject_of(incident("shop", "meltdown"), "", None).deployment == "shop"


def test_many_are_a_table_and_what_is_beyond_it_is_counted() -> None:
    """Rows are short; what a fleet-wide incident explains stands below it."""
    lost = [incident(f"shop/db/{number}") for number in range(20)]
    meltdown = incident("fleet", "meltdown")
    made = wording.notification(
        send(meltdown), lambda each: Item(each, "where", "doing", {}, ("log",)), lost, 10, 1000.0, "hm"
    )
    assert [item.incident.key for item in made.items][:2] == [meltdown.key, lost[0].key]
    assert (len(made.items), made.left_out) == (10, 11)
    assert all(item.log_lines == () for item in made.items)


def test_hostile_text_is_harmless_wherever_it_stands() -> None:
    """Newlines, controls, terminal escapes, reordering, 1 MB: no line breaks out, and what is cut says so."""
    evil = Incident(
        key=f"vm_missing:{HOSTILE}",
        kind="vm_missing",
        subject=HOSTILE,
        severity=incident().severity,
        title=HOSTILE,
        detail=HOSTILE,
        opened_at=1.0,
        updated_at=1.0,
        next_step=HOSTILE,
        resolution=HOSTILE,
    )
    made = wording.notification(
        send(evil), lambda each: Item(each, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, (HOSTILE,) * 500), [], 10, 1.0, "hm"
    )
    (item,) = made.items
    told = item.incident
    texts = [made.subject, item.where, item.doing, told.key, told.subject, told.title, told.detail, told.next_step]
    texts += [told.resolution, *item.facts, *item.facts.values(), *item.log_lines]
    for text in texts:
        assert not any(ord(character) < 32 or character in "\x7f\u202e\u200b\u2028" for character in text), text[:80]
        assert len(text) <= harmless.TEXT_MAX + 60
        assert "more characters)" in text
    assert len(item.log_lines) == harmless.LOG_LINES_MAX


@given(st.text(max_size=400), st.integers(1, 200))
def test_any_text_becomes_one_short_line(text: str, most: int) -> None:
    """Whatever the characters; and what is a line already stays as it is."""
    made = harmless.line(text, most)
    assert made.isprintable() or all(character.isprintable() or character == "\ufffd" for character in made)
    assert len(made) <= most + 40
    assert len(made.splitlines()) <= 1
    if len(made) <= most:
        assert harmless.line(made, most) == made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("plain", "plain"),
        ("  two  words \t", "two words"),
        ("a\r\nb", "a b"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("a\x00b", "a\ufffdb"),
        ("a\u202eb", "a\ufffdb"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        ("Grüße, 東京 🙂", "Grüße, 東京 🙂"),
        ("\ud800", "\ufffd"),
        ("", ""),
    ],
)
def test_a_line(text: str, made: str) -> None:
    """By examples."""
    assert harmless.line(text) == made


def test_log_lines_keep_their_indent_and_their_end() -> None:
    """The last ones, a tab as spaces."""
    assert harmless.lines(["x"] * 50 + ["\tat main()"])[-1] == "    at main()"
    assert len(harmless.lines(["x"] * 50)) == harmless.LOG_LINES_MAX


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (600, "10 min"), (3 * 3600 + 300, "3 h 5 min"), (52 * 3600, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    """In the words of people."""
    assert wording.duration(seconds) == text
