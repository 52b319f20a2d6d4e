"""The configuration: presets, keys, every error with its line, what a reload can change, and its secrets."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from healthmonitor.clouds import registry
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core import configuration as configuration_module
from healthmonitor.core.configuration import (
    AgentsConfiguration,
    BusConfiguration,
    ChannelConfiguration,
    CloudConfiguration,
    Configuration,
    HttpConfiguration,
    differences_needing_restart,
    parse_configuration,
)
from healthmonitor.core.configuration_keys import PRESETS, SECTIONS, Kind
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.maintenance import OnceWindow, WeeklyWindow, describe_window, ends_at, open_window
from healthmonitor.core.policy import Policy
from protocol.ids import CloudName
from tests.support.configuration_tables import preset_rows, section_rows

ROOT = Path(__file__).resolve().parents[2]

WRONG: list[tuple[str, int, str]] = [
    ("", 1, "empty"),
    ("- a", 1, "expected a mapping"),
    ("preset: [", 2, "not YAML"),
    ("preset: big", 1, "one of site, small, test"),
    ("presets: small", 1, "did you mean preset?"),
    ("state_dir: ~/x", 1, "~ is not expanded"),
    ("monitor: a.b", 1, "two monitors have two names"),
    ("log_level: loud", 1, "one of debug, info, warning, error"),
    ("bus:\n  urls: [nats://10.0.0.5:4222]", 2, "credentials are needed"),
    ("bus:\n  urls: [nats://127.0.0.1, nats://nats.example.org]", 2, "credentials are needed"),
    ("bus:\n  urls: [nats://me:secret@127.0.0.1]", 2, "so that no secret stands here"),
    ("bus:\n  urls: [http://127.0.0.1]", 2, "no address of a bus"),
    ("bus:\n  urls: [nats://127.0.0.1:99999]", 2, "not an address"),
    ("bus:\n  urls: []", 2, "no address; expected at least one"),
    ("bus:\n  url: nats://127.0.0.1", 2, "write urls"),
    ("bus:\n  password: x", 2, "secrets come from files"),
    ("bus:\n  user: me", 2, "needs password_file beside it"),
    ("bus:\n  certificate_file: x", 2, "needs key_file beside it"),
    ("bus:\n  system_user: sys", 2, "needs system_password_file beside it"),
    ("bus:\n  replicas: 2", 2, "write 1, 3 or 5"),
    ("bus:\n  user: a\n  password_file: p\n  credentials_file: c", 4, "cannot be combined with user"),
    ("nats: {}", 1, "write bus"),
    ("agents:\n  password: x", 2, "write password_file"),
    ("agents:\n  bus_urls: nowhere", 2, "no address of a bus"),
    ("http:\n  listen: 0.0.0.0:25923", 2, "a token is needed"),
    ("http:\n  listen: '[::]:25923'", 2, "a token is needed"),
    ("http:\n  listen: 25923", 2, "expected HOST:PORT"),
    ("http:\n  listen: 127.0.0.1:99999", 2, "expected HOST:PORT"),
    ("http:\n  listen: example.org:80", 2, "not an IP address of this machine"),
    ("http:\n  token: abc", 2, "write token_file"),
    ("heartbeat:\n  interval: 5", 2, "5 has no unit"),
    ("heartbeat:\n  interval: 5s\n  lease: 8s", 3, "at least 2 intervals (10s)"),
    ("preset: small\nheartbeat:\n  lease: 3s", 3, "at least 2 intervals (4s)"),
    ("heartbeat:\n  interval: 1h", 2, "out of range"),
    ("heartbeat:\n  intervall: 5s", 2, "did you mean interval?"),
    ("liveness:\n  suspect_after: 20s", 2, "less than the lease"),
    ("liveness:\n  start_grace: 1s", 2, "at least the lease"),
    ("liveness:\n  canary_interval: 5s", 2, "at least 2 x canary_interval"),
    ("liveness:\n  mass_share: 30", 2, "write 30% for per cent"),
    ("liveness:\n  mass_share: 200%", 2, "at most 100%"),
    ("resurrector:\n  enabled: perhaps", 2, "true or false"),
    ("resurrector:\n  max_in_flight: 0", 2, "expected 1 to 1000"),
    ("resurrector:\n  hourly_budget: many", 2, "expected a whole number"),
    ("resurrector:\n  retry_first: 10m", 2, "retry_longest must be at least"),
    ("resurrection: {}", 1, "write resurrector"),
    ("meltdown:\n  minimum_count: 1", 2, "expected 2 to"),
    ("meltdown:\n  minimum_count: 20", 2, "maximum_count must be at least minimum_count"),
    ("meltdown:\n  share: lots", 2, "is not a share"),
    ("incidents:\n  after: soon", 2, "is not a duration"),
    ("leadership:\n  ttl: 1s", 2, "at least 3 x renew"),
    ("events:\n  keep: 5", 2, "expected 100 to"),
    ("events:\n  keep_size: 64", 2, "64 has no unit"),
    ("clouds:\n  local: {dir: /x}", 2, "provider is missing"),
    ("clouds:\n  local: {provider: quemu}", 2, "did you mean qemu?"),
    ("clouds:\n  lo.cal: {provider: qemu}", 2, "no cloud's name"),
    ("clouds: [qemu]", 1, "found a list"),
    ("channels:\n  - {name: a}", 2, "type is missing"),
    ("channels:\n  - {name: a, type: log}\n  - {name: b, type: pigeon}", 3, "one of log"),
    ("http:\n  reader_token_file: t", 2, "needs token_file beside it"),
    ("http:\n  reader_token: t", 2, "write reader_token_file"),
    ("channels:\n  - {name: a, type: log}\n  - {name: a, type: log}", 3, "names are unique"),
    ("http: {public_url: monitor.example.org}", 1, "is no address"),
    ("http: {public_url: 'https://[monitor.example.org'}", 1, "is no address"),
    ("http: {public_url: 'https://monitor.example.org/?a=b'}", 1, "expected scheme, host"),
    ("http: {public_url: 'https://user@monitor.example.org'}", 1, "expected scheme, host"),
    ("http: {token_file: t, public_url: 'http://monitor.example.org'}", 1, "in the clear"),
    ("http: {public_url: 'https://monitor.example.org'}", 1, "needs token_file"),
    ("channels:\n  - {name: a, type: log, delivery: {per_minute: 0}}", 2, "out of range"),
    ("channels:\n  - {name: a, type: log, delivery: {repeat: 1h}}", 2, "stands in the section alerts only"),
    ("channels:\n  - {name: a, type: log, delivery: {retry_first: 10m}}", 2, "retry_longest must be at least"),
    ("maintenance:\n  - {start: tomorrow, end: later}", 2, "is no moment"),
    ("maintenance:\n  - {start: '2026-12-01T22:00:00', end: '2026-12-02T22:00:00Z'}", 2, "with its offset"),
    ("maintenance:\n  - {start: '2026-12-03T22:00:00Z', end: '2026-12-02T22:00:00Z'}", 2, "not after start"),
    ("maintenance:\n  - {day: sunday}", 2, "expected start and end"),
    ("maintenance:\n  - {day: someday, at: '02:00', for: 2h}", 2, "one of monday"),
    ("maintenance:\n  - {day: daily, at: '25:00', for: 2h}", 2, "no time of day"),
    ("maintenance:\n  - {day: daily, at: '02:00', for: 25h}", 2, "out of range"),
]


@pytest.mark.parametrize(("text", "line", "fragment"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_configuration_is_refused_with_line_and_cause(text: str, line: int, fragment: str) -> None:
    """Each text is refused with the line and the cause."""
    with pytest.raises(ManifestErrors) as caught:
        parse_configuration(text, "c.yml")
    assert any(error.line == line and fragment in error.message for error in caught.value.errors), str(caught.value)


READABLE = [row for row in WRONG if row[0].startswith(("bus", "http", "heartbeat", "resurr", "clouds:\n", "channels"))]


@pytest.mark.parametrize(("text", "line", "fragment"), READABLE, ids=range(len(READABLE)))
def test_one_mistake_does_not_hide_another(text: str, line: int, fragment: str) -> None:
    """With a further mistake at the end, both are reported."""
    with pytest.raises(ManifestErrors) as caught:
        parse_configuration(text + "\nlog_level: loud\n", "c.yml")
    errors = caught.value.errors
    assert any(error.line == line and fragment in error.message for error in errors)
    assert any(error.path == "log_level" for error in errors)


FULL = """
preset: small
monitor: hm-1
state_dir: state
log_level: debug
bus:
  urls: [tls://nats-1:4222, tls://nats-2:4222]
  user: monitor
  password_file: secrets/bus
  ca_file: /etc/ca.pem
  system_user: sys
  system_password_file: secrets/sys
  replicas: 3
agents: {bus_urls: [tls://nats:4222], user: agents, password_file: secrets/agents}
http: {listen: "0.0.0.0:8080", token_file: secrets/token, reader_token_file: secrets/reader}
heartbeat: {interval: 10s}
resurrector: {enabled: true, hourly_budget: 5}
meltdown: {share: 50%, maximum_count: 4}
events: {keep: 500, keep_size: 1MiB}
clouds:
  local: {provider: qemu, directory: /srv, accel: tcg}
channels: [{name: book, type: log}]
maintenance:
  - {start: "2026-12-01T22:00:00Z", end: "2026-12-02T00:00:00+01:00", reason: storage}
  - {day: sunday, at: "23:00", for: 2h}
"""


def test_every_part_of_a_configuration_is_read() -> None:
    """Relative paths are relative to the file; options of clouds and channels are passed on with their lines."""
    found = parse_configuration(FULL, "c.yml", "/etc/resurgam")
    assert (found.monitor, found.state_dir, found.log_level) == ("hm-1", "/etc/resurgam/state", "debug")
    assert found.bus == BusConfiguration(
        urls=("tls://nats-1:4222", "tls://nats-2:4222"),
        user="monitor",
        password_file="/etc/resurgam/secrets/bus",
        ca_file="/etc/ca.pem",
        system_user="sys",
        system_password_file="/etc/resurgam/secrets/sys",
        replicas=3,
    )
    assert found.agents == AgentsConfiguration(("tls://nats:4222",), "agents", "/etc/resurgam/secrets/agents")
    assert found.http == HttpConfiguration(
        "0.0.0.0", 8080, "/etc/resurgam/secrets/token", "/etc/resurgam/secrets/reader"
    )
    local = CloudName("local")
    assert found.clouds == {local: CloudConfiguration(local, "qemu", {"directory": "/srv", "accel": "tcg"})}
    assert found.clouds[local].lines["directory"] == (21, 38)
    assert found.channels == (ChannelConfiguration("book", "log"),)
    assert found.maintenance == (
        OnceWindow(1796162400.0, 1796166000.0, "storage"),
        WeeklyWindow(6, 23 * 3600, 7200.0),
    )
    policy = found.policy
    assert (policy.resurrection.enabled, policy.resurrection.hourly_budget) == (True, 5)
    assert (policy.meltdown.share, policy.meltdown.maximum_count) == (0.5, 4)
    assert (policy.resurrection.events_max, policy.resurrection.events_max_bytes) == (500, 1024 * 1024)
    assert policy.leadership.ttl_seconds == 3.0  # the preset's


def test_an_almost_empty_configuration_is_the_default() -> None:
    """`preset: site` and nothing else: every default of Policy, everything on loopback."""
    found = parse_configuration("preset: site", "c.yml")
    assert found == Configuration(file="c.yml")
    assert found.policy == Policy()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_right(preset: str) -> None:
    """A preset alone passes every check, and what belongs to the interval follows it."""
    live = parse_configuration(f"preset: {preset}", "c.yml").policy.liveness
    assert live.lease_seconds >= 2 * live.heartbeat_interval_seconds
    assert live.late_seconds == live.heartbeat_interval_seconds / 2
    assert live.suspect_after_seconds == live.heartbeat_interval_seconds * 1.5
    assert live.start_grace_seconds == live.lease_seconds


def test_what_depends_on_the_interval_follows_it_unless_written() -> None:
    """A lease of 3 intervals, late after half of one, asked after one and a half."""
    live = parse_configuration("heartbeat: {interval: 20s}\nliveness: {late: 1s}", "c.yml").policy.liveness
    assert (live.lease_seconds, live.late_seconds, live.suspect_after_seconds, live.start_grace_seconds) == (
        60,
        1,
        30,
        60,
    )


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_key_sets_its_field(section: Any) -> None:
    """Each key of the table, written alone with an allowed value, changes exactly its field (and what follows it)."""
    for key in section.keys:
        default = getattr(getattr(Policy(), section.policy), key.field)
        match key.kind:
            case Kind.DURATION:
                # Upwards by a little, so that no check between keys is in the way; the lease's neighbours allow less.
                value: Any = (
                    default * (0.9 if key.name in ("renew", "interval", "suspect_after", "canary_interval") else 1.1)
                    + 0.001
                )
                if key.name == "after":
                    value = 3.0
                written = f"{round(value * 1000)}ms"
                value = round(value * 1000) / 1000
            case Kind.BOOLEAN:
                value, written = not default, str(not default).lower()
            case Kind.COUNT:
                value, written = default + 1, str(default + 1)
            case Kind.SHARE:
                value, written = 0.45, "45%"
            case Kind.SIZE:
                value, written = 2 * 1024 * 1024, "2MiB"
        text = f"{section.name}: {{{key.name}: {written}}}"
        if (section.name, key.name) == ("heartbeat", "lease"):
            text += "\nliveness: {start_grace: 1h}"
        policy = parse_configuration(text, "c.yml").policy
        assert getattr(getattr(policy, section.policy), key.field) == pytest.approx(value), text


NOT_SETTABLE = {
    "alerts": {"outbox_max_bytes"},
    "liveness": {
        "bosh_lease_seconds",
        "bosh_suspect_after_seconds",
        "offset_window_seconds",
        "asks_max_in_flight",
        "asks_per_second",
        "observes_max_in_flight",
    },
    "resurrection": {
        "boot_look_seconds",
        "copy_seconds",
        "progress_seconds",
        "cloud_calls_max",
        "journal_refresh_seconds",
        "timings_max",
        "stray_sweep_apart_seconds",
        "stray_retry_longest_seconds",
    },
    "disks": {
        "look_seconds",
        "sample_seconds",
        "grow_apart_seconds",
        "snapshot_tries_seconds",
        "snapshot_mib_per_second",
    },
    "leadership": {
        "presence_seconds",
        "present_seconds",
        "forgotten_seconds",
        "monitors_max",
        "move_after_seconds",
        "aside_longest_seconds",
    },
    "spares": {"per_size", "pools_max", "making_max", "look_seconds", "images_seconds", "images_max"},
}
"""Limits of the inside, which no site needs to change."""


def test_the_providers_that_may_be_named_are_those_there_are() -> None:
    """The configuration accepts exactly what the registry can build."""
    assert set(configuration_module.PROVIDERS) == set(registry.PROVIDERS)


def test_every_limit_of_the_policy_has_its_key() -> None:
    """A field of Policy without a key is on the list above, so that leaving one out is a decision."""
    for part in dataclasses.fields(Policy):
        value = getattr(Policy(), part.name)
        if not dataclasses.is_dataclass(value):
            continue
        keys = {key.field for section in SECTIONS if section.policy == part.name for key in section.keys}
        fields = {field.name for field in dataclasses.fields(value)}
        assert keys <= fields
        assert fields - keys == NOT_SETTABLE.get(part.name, set()), part.name


def test_every_key_is_documented() -> None:
    """docs/configuration.md has a row for each key, its default, unit and range as they are in the code."""
    text = (ROOT / "docs/configuration.md").read_text()
    lines = text.splitlines()
    for row in [*preset_rows(), *(row for section in SECTIONS for row in section_rows(section))]:
        assert row in lines, "python -m tests.support.configuration_tables prints what should stand there"
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \|", text, re.MULTILINE)}
    known = {f"{section.name}.{key.name}" for section in SECTIONS for key in section.keys}
    known |= {f"bus.{key}" for key in configuration_module.BUS_KEYS}
    known |= {f"http.{key}" for key in configuration_module.HTTP_KEYS}
    known |= {f"agents.{key}" for key in ("bus_urls", "user", "password_file", "ca_file")}
    known |= {f"registries.{key}" for key in configuration_module.REGISTRIES_KEYS}
    known |= {"preset", "monitor", "state_dir", "log_level", "clouds", "spares", "channels", "zone", "routes"}
    known |= {"maintenance"}
    assert set(rows) == known


def test_every_configuration_in_the_documentation_is_right() -> None:
    """Who copies one gets no error."""
    text = (ROOT / "docs/configuration.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        parse_configuration(block, "docs/configuration.md")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ()),
        ({"log_level": "debug"}, ()),
        ({"policy": Policy(turn_seconds=9)}, ()),
        ({"state_dir": "/x"}, ("state_dir",)),
        ({"bus": BusConfiguration(replicas=3), "http": HttpConfiguration(port=1)}, ("bus", "http")),
        ({"monitor": "other"}, ("monitor",)),
    ],
)
def test_a_reload_names_what_needs_a_restart(change: dict[str, Any], names: tuple[str, ...]) -> None:
    """Switches and intervals are reloaded; where the state, the bus and the HTTP address are is not."""
    assert differences_needing_restart(Configuration(), dataclasses.replace(Configuration(), **change)) == names


@pytest.mark.parametrize(
    ("now", "is_open"),
    [
        (1796162399, False),
        (1796162400, True),
        (1796165999, True),
        (1796166000, False),
        (1796598000 - 1, False),
        (1796598000, True),  # Sunday 6 December 2026, 23:00 UTC
        (1796598000 + 7199, True),  # Monday, 00:59:59
        (1796598000 + 7200, False),
        (1796598000 + 7 * 86400 + 60, True),
    ],
)
def test_maintenance_windows_open_and_close(now: int, is_open: bool) -> None:
    """Once, and weekly over midnight and the end of the week."""
    assert (open_window(parse_configuration(FULL, "c.yml").maintenance, now) is not None) is is_open


def test_maintenance_windows_in_words_and_when_they_end() -> None:
    """As people are shown them: of a weekly one, the end of the one that is open or opens next."""
    once, weekly = OnceWindow(1796162400, 1796166000), WeeklyWindow(6, 23 * 3600, 7200.0)
    daily = WeeklyWindow(None, 9000, 1800.0)
    assert describe_window(once) == "2026-12-01 22:00 to 2026-12-01 23:00 UTC"
    assert describe_window(weekly) == "sunday 23:00 for 2h (UTC)"
    assert describe_window(daily) == "daily 02:30 for 30m (UTC)"
    assert ends_at(once, 0.0) == 1796166000
    sunday = 1796598000.0
    assert [ends_at(weekly, sunday + since) - sunday for since in (-60, 0, 7199, 7200)] == [7200, 7200, 7200, 612000]


def write_secrets(directory: Path, mode: int = 0o600) -> None:
    (directory / "secrets").mkdir()
    for name in ("bus", "sys", "agents", "token", "reader"):
        path = directory / "secrets" / name
        path.write_text(f"{name}-secret\n")
        path.chmod(mode)
    (directory / "c.yml").write_text(FULL.replace("  ca_file: /etc/ca.pem\n", ""))


def test_secrets_are_read_from_their_files(tmp_path: Path) -> None:
    """They end up in the settings of bus and agents, and in no text of the values that hold them."""
    write_secrets(tmp_path)
    loaded = load_configuration(tmp_path / "c.yml")
    assert loaded.monitor_bus.password == "bus-secret"
    assert loaded.system_bus is not None
    assert loaded.system_bus.password == "sys-secret"
    assert (loaded.agent_bus.user, loaded.agent_bus.password) == ("agents", "agents-secret")
    assert loaded.agent_bus.urls == ("tls://nats:4222",)
    assert loaded.secrets.http_token == "token-secret"
    assert loaded.secrets.http_reader_token == "reader-secret"
    assert "secret\n" not in repr(loaded)
    assert "bus-secret" not in repr(loaded)


def test_every_secret_that_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    """A missing file, an empty one and one of two lines: three errors at once."""
    write_secrets(tmp_path)
    (tmp_path / "secrets/bus").unlink()
    (tmp_path / "secrets/sys").write_text(" \n")
    (tmp_path / "secrets/token").write_text("a\nb\n")
    with pytest.raises(ManifestErrors) as caught:
        load_configuration(tmp_path / "c.yml")
    assert [(error.line, error.path) for error in caught.value.errors] == [
        (9, "bus.password_file"),
        (11, "bus.system_password_file"),
        (14, "http.token_file"),
    ]


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    """With the command that mends it."""
    write_secrets(tmp_path, 0o644)
    with pytest.raises(ManifestErrors, match="chmod 600"):
        load_configuration(tmp_path / "c.yml")


def test_a_reader_is_not_given_the_token_of_an_admin(tmp_path: Path) -> None:
    """Two files with one token: whoever may look could change everything."""
    write_secrets(tmp_path)
    (tmp_path / "secrets/reader").write_text("token-secret")
    with pytest.raises(ManifestErrors, match=r"c\.yml:14.*reader_token_file: holds the same token"):
        load_configuration(tmp_path / "c.yml")


def test_wrong_options_of_clouds_are_found_together_with_the_secrets(tmp_path: Path) -> None:
    """Whoever loads it, at the start, for a check or a reload: each cloud's options are judged, with their lines."""
    write_secrets(tmp_path)
    (tmp_path / "secrets/token").unlink()
    path = tmp_path / "c.yml"
    path.write_text(path.read_text().replace("accel: tcg", "acel: tcg"))
    with pytest.raises(ManifestErrors) as caught:
        load_configuration(path)
    found = {error.path: (error.line, error.message) for error in caught.value.errors}
    assert found["clouds.local.acel"] == (20, "qemu has no such option; did you mean accel?")
    assert found["http.token_file"][0] == 14


def test_a_configuration_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    """No such file: an error like any other."""
    with pytest.raises(ManifestErrors, match="cannot be read: No such file"):
        load_configuration(tmp_path / "none.yml")


TREES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["5s", "30%", "nats://::1"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *(
                        *configuration_module.BUS_KEYS,
                        "listen",
                        "interval",
                        "lease",
                        "provider",
                        "name",
                        "type",
                        "start",
                    ),
                    *("end", "day", "at", "for", "share", "enabled", "ttl", "bus_urls", "options", "keep_size"),
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(configuration_module.TOP_KEYS), TREES, max_size=6))
def test_no_structure_raises_anything_but_manifest_errors(document: dict[str, Any]) -> None:
    """Known keys with anything under them are read or refused."""
    try:
        parse_configuration(yaml.safe_dump(document, allow_unicode=True), "c.yml")
    except ManifestErrors as errors:
        text = str(errors)
    else:
        text = "c.yml:"
    assert text.startswith("c.yml:")


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.text(max_size=100)))
def test_no_text_raises_anything_but_manifest_errors(text: bytes | str) -> None:
    """Random bytes and text are refused, or, now and then (`{}`), a configuration; nothing else happens."""
    with contextlib.suppress(ManifestErrors):
        parse_configuration(text, "c.yml")


def test_an_empty_mapping_is_a_configuration_of_defaults() -> None:
    """Found by the test above."""
    assert parse_configuration("{}", "c.yml").policy == Policy()
