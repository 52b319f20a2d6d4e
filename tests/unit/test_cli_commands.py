"""The command against a pretended API: what people and programs are told, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cli import (
    Command,
    PretendedApi,
    container,
    deployment,
    instance,
    monitor,
    operation,
    spare,
    status,
)

PLAN = {
    "deployment": "shop",
    "empty": False,
    "changes": [
        {"verb": "create", "subject": "shop/db/0", "details": ["VM in local from demo"], "containers": {}, "disks": {}}
    ],
    "unchanged": 0,
    "summary": "1 created, 0 unchanged",
    "warnings": [],
    "refusals": [],
}
EMPTY_PLAN = {**PLAN, "empty": True, "changes": [], "summary": "2 unchanged", "unchanged": 2}


@pytest.fixture
def api() -> PretendedApi:
    return PretendedApi(
        {
            ("GET", "/v1/status"): status(),
            ("GET", "/v1/events"): {"events": []},
            ("GET", "/v1/monitors"): {**status()["monitor"], "monitors": [monitor("hm", this=True, doing="leads")]},
        }
    )


@pytest.fixture
def command(tmp_path: Path, api: PretendedApi) -> Command:
    return Command(tmp_path, api)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yml"
    path.write_text(
        "name: shop\n"
        "instance_groups:\n"
        "- {name: db, containers: {redis: {image: r, env_file: [redis.env, {path: more.env}]}}}\n"
    )
    (tmp_path / "redis.env").write_text("A=1\n")
    (tmp_path / "more.env").write_text("B=2\n")
    return path


def test_status_names_every_instance_with_its_state(command: Command) -> None:
    """The status is one line for each deployment and instance, without boxes or colours where no terminal is."""
    outcome = command("status")
    assert outcome.code == 0
    assert "shop  revision 3, 2 of 2 instances as they should be" in outcome.out
    assert "shop/db/0   running  alive    vm-db (gen 1)   1/1" in outcome.out
    assert "\x1b" not in outcome.out


def test_the_monitors_are_listed_with_what_each_does(command: Command, api: PretendedApi) -> None:
    """One line each, the reason beside one that would not lead, and who leads since when and why."""
    api.answers["GET", "/v1/monitors"] = {
        **status()["monitor"],
        "monitors": [
            monitor("hm", this=True, doing="leads"),
            monitor("hm-b", doing="warming up", state="just started"),
            monitor("hm-c", doing="silent", silent_seconds=75.0),
        ],
    }
    lines = command("monitor", "list").out.splitlines()
    assert lines[0].lower().split()[:2] == ["monitor", "doing"]
    assert [line.split()[0] for line in lines[1:4]] == ["hm", "hm-b", "hm-c"]
    assert "this one" in lines[1]
    assert "just started" in lines[2]
    assert "1 min 15 s ago" in lines[3]
    assert lines[-1].startswith("hm leads since")
    assert lines[-1].endswith(": there was no lease")


def test_what_is_held_back_is_said_with_the_way_out(command: Command, api: PretendedApi) -> None:
    """An operation that waits for a person shows step, hold, reason and the command to type."""
    held = instance(
        "shop/db/0",
        state="unfenced",
        tone="bad",
        verdict="missing",
        why="being rebuilt, step fence: the host does not answer",
        next="resurgam fence confirm shop/db/0 --because …",
        operation=operation(),
    )
    api.answers["GET", "/v1/status"] = status(instances=[held, instance("shop/web/0")])
    outcome = command("status")
    assert "resurrect: fence [unfenced]" in outcome.out
    assert "shop/db/0: being rebuilt, step fence: the host does not answer" in outcome.out
    assert "next: resurgam fence confirm shop/db/0" in outcome.out
    assert command("status", "--check").code == 5
    single = command("status", "db/0").out
    assert "confirm" in single
    assert "asked in vain" in single
    assert "the host does not answer (try 3)" in single


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"monitor": {**status()["monitor"], "bus_connected": False}}, "lost the bus"),
        ({"monitor": {**status()["monitor"], "leader": False, "leader_id": "hm2"}}, "hm2 leads and acts"),
        (
            {"monitor": {**status()["monitor"], "leader_why": "hm-b led and fell silent"}},
            ": hm-b led and fell silent",
        ),
        ({"monitor": {**status()["monitor"], "leader_id": ""}}, "No monitor leads"),
        ({"monitors": [monitor("hm", this=True), monitor("hm-b")]}, "Beside this monitor: hm-b warm"),
        (
            {"monitors": [monitor("hm", this=True), monitor("hm-b", doing="silent", silent_seconds=90.0)]},
            "hm-b silent for 1 min 30 s",
        ),
        (
            {"unreadable": ["record shop.db.0 in bucket operations"]},
            "Unreadable: record shop.db.0 in bucket operations",
        ),
        ({"monitor": {**status()["monitor"], "cannot_tell": "the bus came back"}}, "Cannot tell: the bus came back"),
        ({"switches": {**status()["switches"], "resurrection": False}}, "`resurgam resurrection on`"),
        ({"switches": {**status()["switches"], "configured": False}}, "resurrector.enabled"),
        ({"switches": {**status()["switches"], "paused_until": 4e9, "paused_by": "ada"}}, "Paused by ada until"),
        ({"meltdowns": {"fleet": "5 of 6 VMs are gone"}}, "Meltdown (fleet): 5 of 6 VMs are gone"),
        ({"deployments": [], "instances": []}, "nothing is deployed yet"),
    ],
)
def test_what_holds_for_everything_stands_on_top(
    command: Command, api: PretendedApi, changes: dict[str, Any], expected: str
) -> None:
    """Whatever keeps the monitor from doing its job is said before the instances."""
    api.answers["GET", "/v1/status"] = status(**changes)
    assert expected in command("status").out


def test_programs_get_the_same_as_json(command: Command) -> None:
    """`--output json` prints the API's own words and nothing else, wherever the option stands."""
    assert command("status", "--output", "json").json == status()
    assert command("-o", "json", "status").json == status()
    assert command("status", "--output=json", "shop/db/0").json["instances"] == [instance("shop/db/0")]


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["start", "db/0"], "/v1/instances/shop/db/0/start", {"containers": [], "because": ""}),
        (["stop", "db", "redis", "--yes"], "/v1/instances/shop/db/0/stop", {"containers": ["redis"], "because": ""}),
        (["restart", "shop/db/0", "-y"], "/v1/instances/shop/db/0/restart", {"containers": [], "because": ""}),
        (
            ["recreate", "web/0", "-y", "--because", "new kernel"],
            "/v1/instances/shop/web/0/recreate",
            {"containers": [], "because": "new kernel"},
        ),
        (["ignore", "web/0"], "/v1/instances/shop/web/0/ignore", {"containers": [], "because": ""}),
        (["pause", "--for", "30m"], "/v1/switches/pause", {"seconds": 1800.0, "because": ""}),
        (["pause"], "/v1/switches/pause", {"because": ""}),
        (["resume"], "/v1/switches/resume", {"because": ""}),
        (
            ["monitor", "step-down", "--for", "2m", "--because", "new kernel", "--yes"],
            "/v1/monitors/step-down",
            {"seconds": 120.0, "because": "new kernel"},
        ),
        (["resurrection", "off"], "/v1/switches/resurrection", {"enabled": False, "because": ""}),
        (
            ["resurrection", "on", "--because", "done"],
            "/v1/switches/resurrection",
            {"enabled": True, "because": "done"},
        ),
        (["meltdown", "override", "--for", "2h", "--yes"], "/v1/switches/meltdown", {"seconds": 7200.0, "because": ""}),
        (
            ["fence", "confirm", "db/0", "--because", "Ada pulled the plug", "--yes"],
            "/v1/fence/confirm",
            {"instance": "shop/db/0", "because": "Ada pulled the plug"},
        ),
    ],
)
def test_each_action_is_one_request(
    command: Command, api: PretendedApi, arguments: list[str], path: str, body: dict[str, Any]
) -> None:
    """Names are completed, lengths of time are read, and what was asked for is exactly what is sent."""
    api.answers["POST", path] = {"text": "it is done", "next": ""}
    outcome = command(*arguments)
    assert (outcome.code, outcome.out) == (0, "it is done\n")
    assert api.said_to("POST", path) == [body]


@pytest.mark.parametrize(
    "arguments",
    [
        ["stop", "db/0"],
        ["restart", "db/0"],
        ["recreate", "db/0"],
        ["meltdown", "override"],
        ["fence", "confirm", "db/0", "--because", "x"],
        ["monitor", "step-down"],
        ["delete", "shop"],
        ["deploy", "shop.yml"],
    ],
)
def test_nothing_destructive_happens_without_a_word(
    command: Command, api: PretendedApi, manifest: Path, arguments: list[str]
) -> None:
    """Where nobody can be asked, what destroys or interrupts is refused with the option that confirms it."""
    api.answers["POST", "/v1/plan"] = {"plan": PLAN, "revision": 0}
    outcome = command(*[str(manifest) if word == "shop.yml" else word for word in arguments])
    assert outcome.code == 2
    assert "add --yes" in outcome.err
    assert [method for method, path, _ in api.asked if method != "GET" and path != "/v1/plan"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status", "nothing"], 2, "no deployment and no instance 'nothing'"),
        (["start", "shop"], 2, "may be shop/db/0, shop/web/0"),
        (["start", "bd/0"], 2, "did you mean db/0?"),
        (["pause", "--for", "soon"], 2, "write it like 90s, 30m, 2h or 1d"),
        (["plan", "missing.yml"], 2, "missing.yml does not exist"),
        (["delete", "shpo", "--yes"], 2, "did you mean shop?"),
        (["frobnicate"], 2, "No such command"),
        (["fence", "confirm", "db/0"], 2, "Missing option"),
        (["status", "--output", "xml"], 2, "text or json"),
        ([], 2, "Usage:"),
        (["fence"], 2, "Usage:"),
    ],
)
def test_wrong_command_lines_say_what_to_write(command: Command, arguments: list[str], code: int, said: str) -> None:
    """Exit code 2, nothing done, and a word that helps."""
    outcome = command(*arguments)
    assert outcome.code == code
    assert said in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (httpx.ConnectError("refused"), 3, "resurgam up"),
        (httpx.ReadTimeout("late"), 3, "did not answer in time"),
        ((401, {"error": "a token is needed", "where": "", "next": "send one"}), 4, "next:  send one"),
        ((403, {"error": "the role reader may only look", "where": "", "next": ""}), 4, "may only look"),
        ((503, {"error": "no answer over the bus in time", "where": "", "next": "look"}), 3, "no answer over the bus"),
        ((409, {"error": "it is being deleted", "where": "", "next": "wait"}), 1, "next:  wait"),
        ((500, {"error": "a defect", "where": "", "next": ""}), 1, "a defect"),
        ((422, {"error": "2 errors", "details": ["a.yml:1: x", "a.yml:9: y"]}), 2, "a.yml:9: y"),
    ],
)
def test_each_failure_has_its_exit_code(command: Command, api: PretendedApi, reply: Any, code: int, said: str) -> None:
    """Programs tell by the code whose fault it is; people read what to do next."""
    api.answers["GET", "/v1/status"] = reply
    outcome = command("status")
    assert outcome.code == code
    assert said in outcome.err
    failure = json.loads(command("status", "-o", "json").err)
    assert failure["exit_code"] == code


def test_a_plan_travels_with_the_files_it_needs(command: Command, api: PretendedApi, manifest: Path) -> None:
    """The contents of env files and the variables go along, because the monitor may run elsewhere."""
    api.answers["POST", "/v1/plan"] = {"plan": PLAN, "revision": 0}
    outcome = command("plan", str(manifest), "--var", "TAG=7=8")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "create   shop/db/0",
        "          VM in local from demo",
        "1 created, 0 unchanged",
    ]
    (body,) = api.said_to("POST", "/v1/plan")
    assert body["env_files"] == {"redis.env": "A=1\n", "more.env": "B=2\n"}
    assert body["variables"] == {"TAG": "7=8"}
    assert body["file"] == str(manifest)


def test_a_deploy_is_bound_to_the_plan_that_was_shown(command: Command, api: PretendedApi, manifest: Path) -> None:
    """What is deployed carries the revision that its plan was made against, so that nobody else's change is undone."""
    api.answers["POST", "/v1/plan"] = {"plan": PLAN, "revision": 3}
    api.answers["PUT", "/v1/deployments/shop"] = {"text": "revision 4 is being rolled out", "next": "", "revision": 4}
    outcome = command("deploy", str(manifest), "--yes", "--because", "Tuesday")
    assert outcome.code == 0
    assert "revision 4 is being rolled out" in outcome.out
    (body,) = api.said_to("PUT", "/v1/deployments/shop")
    assert (body["if_revision"], body["because"]) == (3, "Tuesday")


def test_nothing_is_deployed_when_nothing_changes(command: Command, api: PretendedApi, manifest: Path) -> None:
    """A manifest that says what is there already ends well, without a new revision and without a question."""
    api.answers["POST", "/v1/plan"] = {"plan": EMPTY_PLAN, "revision": 3}
    outcome = command("deploy", str(manifest))
    assert outcome.code == 0
    assert "nothing to do" in outcome.out
    assert api.said_to("PUT", "/v1/deployments/shop") == []


def test_a_plan_that_would_harm_data_is_refused(command: Command, api: PretendedApi, manifest: Path) -> None:
    """Refusals are shown and nothing is sent, also with --yes."""
    refusal = "shop/db/0: disk data cannot shrink"
    api.answers["POST", "/v1/plan"] = {"plan": {**PLAN, "refusals": [refusal]}, "revision": 3}
    outcome = command("deploy", str(manifest), "--yes")
    assert outcome.code == 1
    assert refusal in outcome.err
    assert api.said_to("PUT", "/v1/deployments/shop") == []


@pytest.mark.parametrize(
    ("after", "code", "said"),
    [
        (status(deployments=[deployment(revision=4)]), 0, "done in"),
        (
            status(deployments=[deployment(revision=4, rollout="failed", rollout_error="db/0 is not healthy")]),
            1,
            "db/0 is not healthy",
        ),
        (status(deployments=[deployment(revision=5)]), 1, "somebody deployed shop again"),
        (status(deployments=[], instances=[]), 1, "was deleted meanwhile"),
    ],
)
def test_following_ends_as_the_rollout_does(
    command: Command, api: PretendedApi, manifest: Path, after: dict[str, Any], code: int, said: str
) -> None:
    """`--follow` ends by itself: well, failed, or because somebody else took over."""
    api.answers["POST", "/v1/plan"] = {"plan": PLAN, "revision": 3}
    api.answers["PUT", "/v1/deployments/shop"] = {"text": "being rolled out", "next": "", "revision": 4}
    api.answers["GET", "/v1/status"] = after
    outcome = command("deploy", str(manifest), "--yes", "--follow")
    assert outcome.code == code
    assert said in outcome.err


def test_events_tell_how_long_everything_took(command: Command, api: PretendedApi) -> None:
    """The timeline has each event with the time since the one before, and the length of steps."""
    listed = [
        {
            "sequence": 1,
            "at": 100.0,
            "kind": "operation.begun",
            "subject": "shop/db/0",
            "text": "resurrect",
            "fields": {},
        },
        {
            "sequence": 2,
            "at": 102.5,
            "kind": "operation.step",
            "subject": "shop/db/0",
            "text": "fence",
            "fields": {"seconds": "2.5"},
        },
    ]
    api.answers["GET", "/v1/events"] = {"events": listed}
    lines = command("events").out.splitlines()
    assert "+2.5 s" in lines[2]
    assert "fence (2.5 s)" in lines[2]
    assert [json.loads(line) for line in command("events", "-o", "json").out.splitlines()] == listed


def test_a_container_that_is_broken_says_why(command: Command, api: PretendedApi) -> None:
    """The instance in full has each container with state, restarts and the engine's own words."""
    broken = container("redis", state="crash_loop", fine=False, reason="exited", exit_code=139, restarts=7, detail="no")
    api.answers["GET", "/v1/status"] = status(instances=[instance("shop/db/0", containers=[broken])])
    out = command("status", "shop/db/0").out
    assert "redis      crash loop  1 min 05 s  7         exited 139: no" in out


def test_strangers_are_listed(command: Command, api: PretendedApi) -> None:
    """Agents of no deployment are shown with how long they have been known and silent."""
    assert "every agent" in command("status", "--strangers").out
    stranger = {"agent_id": "old-1", "verdict": "alive", "known_seconds": 65.0, "silent_seconds": None}
    api.answers["GET", "/v1/status"] = status(strangers=[stranger])
    assert "old-1  alive    1 min 05 s  never heard" in command("status", "--strangers").out


def test_spares_are_listed(command: Command, api: PretendedApi) -> None:
    """What is booted in advance, how it is; the status says how many at a glance, and when one is not well."""
    assert "no spare VMs" in command("spares").out
    assert "spare VM" not in command("status").out
    failing = spare(key="spare-2", state="making", vm_cid=None, images=[], error="quota")
    api.answers["GET", "/v1/status"] = status(spares=[spare(), failing])
    out = command("spares").out
    assert "spare-1  ready   alive    vm-spare      local: demo, 1 CPU, 512 MiB" in out
    assert "spare-2  making  alive    (being made)  local: demo, 1 CPU, 512 MiB" in out
    assert "quota" in out
    assert command("spares", "--output", "json").json[0]["key"] == "spare-1"
    assert "1 spare VM ready, 1 making; not all is as it should be: `resurgam spares`" in command("status").out


def test_logs_need_no_container_name_where_there_is_one(command: Command, api: PretendedApi) -> None:
    """With a single container its name may be left out."""
    api.answers["GET", "/v1/instances/shop/db/0"] = instance("shop/db/0")
    api.answers["GET", "/v1/instances/shop/db/0/logs"] = {"text": "[a] line\n"}
    assert command("logs", "db/0").out == "[a] line\n"
    api.answers["GET", "/v1/instances/shop/db/0"] = instance("shop/db/0", wanted_containers=["a", "b"])
    assert command("logs", "db/0").code == 2


def test_a_snapshot_is_asked_for_listed_and_put_back(command: Command, api: PretendedApi) -> None:
    """By instance and name; only a snapshot is restored, to the place of the disk that it was taken of."""
    api.answers["POST", "/v1/disks/snapshots"] = {"text": "a snapshot is being taken", "next": ""}
    taken = command("disks", "snapshot", "shop/db/0", "data", "--for", "30d", "--because", "upgrade")
    assert (taken.code, "is being taken" in taken.out) == (0, True)
    assert api.said_to("POST", "/v1/disks/snapshots") == [
        {"instance": "shop/db/0", "disk": "data", "seconds": 30 * 86400.0, "because": "upgrade"}
    ]
    disk = {
        "cid": "d-7", "instance": "shop/db/0", "disk": "data", "role": "snapshot", "size_mib": 10, "percent": None,
        "inode_percent": None, "holders": [], "made_at": 1.0, "orphaned_at": 1.0, "kept_until": 9e12, "why": "of d-1",
    }  # fmt: skip
    api.answers["GET", "/v1/disks"] = {"disks": [disk, {**disk, "cid": "d-1", "role": "in use"}]}
    listed = command("disks", "list", "--orphans").out
    assert ("d-7" in listed, "snapshot" in listed, "in use" in listed) == (True, True, False)
    api.answers["POST", "/v1/disks/d-7/attach"] = {"text": "d-7 takes the place", "next": ""}
    assert command("disks", "restore", "d-7", "--yes").code == 0
    assert api.said_to("POST", "/v1/disks/d-7/attach") == [{"instance": "shop/db/0", "disk": "data", "because": ""}]
    refused = command("disks", "restore", "d-1", "--yes")
    assert refused.code != 0
    assert not api.said_to("POST", "/v1/disks/d-1/attach")
