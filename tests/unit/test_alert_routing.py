"""Where incidents go, when, and why: routes, hours, silences, and the file they are read from."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from healthmonitor.core.configuration import parse_configuration
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.notifying.hours import Hours, within
from healthmonitor.core.notifying.routing import EscalationStep, Route, Subject, routed
from healthmonitor.core.notifying.silences import describe, is_on, matching
from healthmonitor.core.records import Incident, Severity, Silence
from tests.support.alerts import incident, subject_of

ALL = ("mail", "pager", "log")
MONDAY_NOON = datetime(2026, 11, 23, 12, 0, tzinfo=ZoneInfo("UTC")).timestamp()
WEEKDAYS = frozenset(range(5))
EVERY_DAY = frozenset(range(7))


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("hours", "moment", "expected"),
    [
        (Hours(WEEKDAYS, 8 * 3600, 18 * 3600), "2026-11-23 08:00", True),
        (Hours(WEEKDAYS, 8 * 3600, 18 * 3600), "2026-11-23 17:59", True),
        (Hours(WEEKDAYS, 8 * 3600, 18 * 3600), "2026-11-23 18:00", False),
        (Hours(WEEKDAYS, 8 * 3600, 18 * 3600), "2026-11-22 12:00", False),  # a Sunday
        (Hours(frozenset({6})), "2026-11-22 00:00", True),
        (Hours(frozenset({6})), "2026-11-23 00:00", False),
        (Hours(frozenset({4}), 22 * 3600, 6 * 3600), "2026-11-27 23:00", True),  # Friday night
        (Hours(frozenset({4}), 22 * 3600, 6 * 3600), "2026-11-28 05:59", True),  # still Friday's
        (Hours(frozenset({4}), 22 * 3600, 6 * 3600), "2026-11-27 05:00", False),  # Thursday's
        (Hours(EVERY_DAY, 8 * 3600, 86400), "2026-11-22 23:59", True),
        (Hours(EVERY_DAY, 8 * 3600, 18 * 3600, "Europe/Berlin"), "2026-01-15 07:30", True),  # 08:30 there
        (Hours(EVERY_DAY, 8 * 3600, 18 * 3600, "Europe/Berlin"), "2026-07-15 06:30", True),  # 08:30 in summer
        (Hours(EVERY_DAY, 8 * 3600, 18 * 3600, "Europe/Berlin"), "2026-01-15 06:30", False),
        (Hours(WEEKDAYS, 0, 12 * 3600, "Asia/Tokyo"), "2026-11-22 16:00", True),  # Monday 01:00 there
    ],
)
def test_hours_are_those_of_the_wall_clock_there(hours: Hours, moment: str, expected: bool) -> None:
    """In their zone, over summer time, over midnight."""
    assert (within([hours], at(moment)) is not None) is expected


VM = incident()
DISK = incident("shop/db/0/data", "disk_read_only")
WARNING = incident("web/front/3", "vm_suspect")
BUS = incident("monitor", "bus_lost")
FAILING = incident("pager", "channel_failing")


@pytest.mark.parametrize(
    ("route", "about", "matches"),
    [
        (Route("r", ("mail",)), VM, True),
        (Route("r", ("mail",), severities=frozenset({Severity.CRITICAL})), VM, True),
        (Route("r", ("mail",), severities=frozenset({Severity.CRITICAL})), WARNING, False),
        (Route("r", ("mail",), deployments=("shop",)), VM, True),
        (Route("r", ("mail",), deployments=("sh*", "x")), DISK, True),
        (Route("r", ("mail",), deployments=("shop",)), WARNING, False),
        (Route("r", ("mail",), deployments=("shop",)), BUS, False),
        (Route("r", ("mail",), groups=("front",)), WARNING, True),
        (Route("r", ("mail",), groups=("front",)), VM, False),
        (Route("r", ("mail",), kinds=("disk_*",)), DISK, True),
        (Route("r", ("mail",), kinds=("disk_*",)), VM, False),
        (Route("r", ("mail",), labels={"team": "db"}), VM, True),
        (Route("r", ("mail",), labels={"team": "d?"}), VM, True),
        (Route("r", ("mail",), labels={"team": "web"}), VM, False),
        (Route("r", ("mail",), labels={"other": "*"}), VM, False),
        (Route("r", ("mail",), during=(Hours(WEEKDAYS, 8 * 3600, 18 * 3600),)), VM, True),
        (Route("r", ("mail",), during=(Hours(WEEKDAYS, 18 * 3600, 8 * 3600),)), VM, False),
    ],
)
def test_a_route_matches_by_all_its_criteria(route: Route, about: Incident, matches: bool) -> None:
    """What does not match says why, and goes to everybody."""
    subject = subject_of(about)
    subject = Subject(subject.deployment, subject.group, subject.instance, {"team": "db"})
    way = routed(about, subject, [route], ALL, MONDAY_NOON)
    assert way.channels == (("mail",) if matches else ALL)
    assert way.route == ("r" if matches else "default")
    assert any("does not match: its" in reason or "does not match: it is not" in reason for reason in way.reasons) is (
        not matches
    )


def test_the_first_route_decides_unless_it_goes_on() -> None:
    """`continue` adds the next that matches: their channels, steps and the shorter repeat."""
    first = Route("all", ("log",), goes_on=True, repeat_seconds=60.0)
    second = Route("db", ("pager", "log"), deployments=("shop",), escalate=(EscalationStep(900, ("mail",)),))
    third = Route("rest", ("mail",))
    way = routed(VM, subject_of(VM), [first, second, third], ALL, 0.0)
    assert (way.route, way.channels, way.repeat_seconds) == ("all+db", ("log", "pager"), 60.0)
    assert way.escalate == (EscalationStep(900, ("mail",)),)
    assert routed(WARNING, subject_of(WARNING), [first, second, third], ALL, 0.0).channels == ("log", "mail")


def test_a_failing_channel_is_told_of_on_the_others() -> None:
    """Also when its route names no other."""
    assert routed(FAILING, Subject(), [], ALL, 0.0).channels == ("mail", "log")
    assert routed(FAILING, Subject(), [Route("r", ("pager",))], ALL, 0.0).channels == ("mail", "log")


def test_a_route_to_nobody_is_one_and_is_written_by_somebody() -> None:
    """What is unmatched goes to everybody; what is matched by a route without channels to nobody."""
    assert routed(VM, subject_of(VM), [Route("drop", (), deployments=("shop",))], ALL, 0.0).channels == ()


def test_quiet_hours_hold_only_when_every_route_is_quiet() -> None:
    """A route that goes on to one without quiet hours does not hold it back."""
    quiet = (Hours(EVERY_DAY),)
    held = routed(VM, subject_of(VM), [Route("a", ("mail",), quiet=quiet)], ALL, 0.0)
    assert held.quiet == quiet[0]
    both = [Route("a", ("mail",), quiet=quiet, goes_on=True), Route("b", ("pager",))]
    assert routed(VM, subject_of(VM), both, ALL, 0.0).quiet is None


def silence(**where: str) -> Silence:
    return Silence("s1", ends_at=2000.0, created_at=1000.0, created_by="ann (admin)", because="move", **where)


@pytest.mark.parametrize(
    ("where", "silenced"),
    [
        ({"deployment": "shop"}, {"VM", "DISK"}),
        ({"deployment": "*"}, {"VM", "DISK", "WARNING"}),
        ({"deployment": "shop", "group": "db"}, {"VM", "DISK"}),
        ({"group": "front"}, {"WARNING"}),
        ({"instance": "shop/db/0"}, {"VM", "DISK"}),
        ({"instance": "shop/db/1"}, set()),
        ({"kind": "disk_*"}, {"DISK"}),
        ({"kind": "vm_missing", "deployment": "shop"}, {"VM"}),
        ({"kind": "vm_missing", "deployment": "web"}, set()),
        ({"kind": "bus_lost"}, {"BUS"}),
        ({}, set()),
    ],
)
def test_a_silence_silences_what_it_names(where: dict[str, str], silenced: set[str]) -> None:
    """The monitor's own incidents only by their kind."""
    named = {"VM": VM, "DISK": DISK, "WARNING": WARNING, "BUS": BUS}
    found = {name for name, each in named.items() if matching([silence(**where)], each, subject_of(each), 1500.0)}
    assert found == silenced


def test_a_silence_ends_by_itself() -> None:
    """From its beginning, up to its end and no longer."""
    each = silence(deployment="shop", group="db")
    assert [is_on(each, moment) for moment in (999.0, 1000.0, 1999.9, 2000.0)] == [False, True, True, False]
    assert describe(each) == "everything of shop/db"


FILE = """
zone: Europe/Berlin
channels:
  - {name: mail, type: log}
  - {name: pager, type: log}
routes:
  - name: night
    severity: [critical, 1]
    during: {days: mon-fri, from: "18:00", to: "08:00"}
    channels: [pager]
    escalate: [{after: 15m, channels: [mail]}]
  - {name: weekend, during: [{days: [saturday, sun], zone: UTC}], channels: [pager], continue: true}
  - deployments: [shop, "web-*"]
    kinds: disk_*
    labels: {team: db}
    quiet: {from: "22:00", to: "06:00"}
    repeat: 30m
    channels: [mail]
"""


def test_routes_are_read_from_the_file() -> None:
    """Words, numbers, ranges of days, hours over midnight, the file's zone and a route's own."""
    night, weekend, disks = parse_configuration(FILE, "c.yml").routes
    assert night.severities == {Severity.CRITICAL, Severity.ALERT}
    assert night.during == (Hours(WEEKDAYS, 18 * 3600, 8 * 3600, "Europe/Berlin"),)
    assert night.escalate == (EscalationStep(900.0, ("mail",)),)
    assert weekend.during == (Hours(frozenset({5, 6}), 0, 0, "UTC"),)
    assert weekend.goes_on
    assert (disks.name, disks.deployments, disks.kinds) == ("route-3", ("shop", "web-*"), ("disk_*",))
    assert (disks.labels, disks.repeat_seconds) == ({"team": "db"}, 1800.0)
    assert disks.quiet == (Hours(EVERY_DAY, 22 * 3600, 6 * 3600, "Europe/Berlin"),)


CHANNELS = "channels: [{name: mail, type: log}, {name: pager, type: log}]\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("routes:\n  - {channels: [male]}", 3, "unknown channel 'male'; did you mean mail?"),
        ("routes:\n  - {channels: mail}", 3, "expected a list of channels' names"),
        ("routes:\n  - {name: a}", 3, "channels is missing"),
        ("routes:\n  - {channels: [mail, mail]}", 3, "a second time"),
        ("routes:\n  - {channel: mail}", 3, "write channels: [NAME]"),
        ("routes:\n  - {channels: [mail], severity: critica}", 3, "did you mean critical?"),
        ("routes:\n  - {channels: [mail], severity: 5}", 3, "unknown severity '5'"),
        ("routes:\n  - {channels: [mail], kinds: vm_mising}", 3, "did you mean vm_missing?"),
        ("routes:\n  - {channels: [mail], during: {days: mo-fri}}", 3, "is no day"),
        ('routes:\n  - {channels: [mail], during: {from: "08:00"}}', 3, "from and to belong together"),
        ('routes:\n  - {channels: [mail], during: {from: "08:00", to: "08:00"}}', 3, "the same as from"),
        ('routes:\n  - {channels: [mail], during: {from: "8", to: "25:00"}}', 3, "is no time of day"),
        ("routes:\n  - {channels: [mail], during: {zone: Mars/Base}}", 3, "is no time zone"),
        ("zone: ../etc/passwd", 2, "is no time zone"),
        ("timezone: UTC", 2, "write zone"),
        ("routes:\n  - {channels: [mail], escalate: [{after: 5m, channels: [sms]}]}", 3, "unknown channel 'sms'"),
        ("routes:\n  - {channels: [mail], escalate: [{after: 5m, channels: []}]}", 3, "a step to nobody"),
        ("routes:\n  - {channels: [mail], escalate: [{channels: [mail]}]}", 3, "after is missing"),
        (
            "routes:\n  - {channels: [mail], escalate: [{after: 5m, channels: [mail]}, {after: 2m, channels: [mail]}]}",
            3,
            "must be later than the step before",
        ),
        ("routes:\n  - {channels: [mail]}\n  - {channels: [pager]}", 4, "never reached"),
        ("routes:\n  - {name: a, deployments: x, channels: [mail]}\n  - {name: a, channels: [mail]}", 4, "unique"),
        ("routes:\n  - {channels: [mail], repeat: soon}", 3, "soon"),
        ("alerts: {group_wait: 10s, group_longest: 1s}", 2, "group_longest must be at least group_wait"),
        ("alerts: {retry_longest: 1s, retry_first: 5s}", 2, "retry_longest must be at least retry_first"),
        ("alerts: {per_minute: 0}", 2, "out of range"),
        ("alerts: {repeats: 1h}", 2, "did you mean repeat?"),
    ],
)
def test_every_error_names_its_line_and_its_cause(text: str, line: int, message: str) -> None:
    """A wrong file says where and what, and gives nothing."""
    with pytest.raises(ManifestErrors) as caught:
        parse_configuration(CHANNELS + text, "c.yml")
    assert any(error.line == line and message in str(error) for error in caught.value.errors), str(caught.value)
