"""Right manifests, and that no text whatever raises anything but ManifestErrors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from healthmonitor.core import compose, manifest_file
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest, UpdatePolicy, VmSize
from healthmonitor.core.manifest_file import check_against, parse_manifest
from protocol import codec
from protocol.ids import ContainerName, DiskName
from protocol.spec import OnIsolation

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yml"))

FULL = """
x-common: &common
  image: app:1
  environment: {MODE: fast}
name: shop
stemcell: debian-12
cloud: local
vm: {cpus: 2, memory: 2GiB, cloud_properties: {zone: a}}
update: {canaries: 2, max_in_flight: 3, canary_watch_time: 1m, update_watch_time: 90s}
networks: [front]
instance_groups:
  - name: db
    instances: 3
    vm: {memory: 4g}
    stemcell: debian-13
    cloud: other
    on_isolation: stop
    resurrection: false
    update: {canaries: 1}
    networks: {back: {driver: bridge}}
    persistent_disks:
      data: {size: 10GiB, filesystem: xfs, mount_options: [noatime], cloud_properties: {type: ssd}}
      logs: 512MiB
    containers:
      app:
        <<: *common
        networks: [front, back]
  - name: web
    x-note: anything
    containers:
      app: *common
"""


def only_group(text: str, **variables: str) -> InstanceGroup:
    return parse_manifest(text, "m.yml", variables).manifest.groups[0]


def test_every_key_of_a_manifest_is_read() -> None:
    """Groups override what stands at the top, key by key; anchors and merges work as in Compose."""
    manifest = parse_manifest(FULL, "m.yml").manifest
    db, web = manifest.groups
    assert (manifest.name, db.name, web.name) == ("shop", "db", "web")
    assert (db.instances, web.instances) == (3, 1)
    assert db.vm == VmSize(2, 4096, {"zone": "a"})
    assert web.vm == VmSize(2, 2048, {"zone": "a"})
    assert (db.stemcell, db.cloud, web.stemcell, web.cloud) == ("debian-13", "other", "debian-12", "local")
    assert db.disks == (
        DiskRequirement(DiskName("data"), 10240, "xfs", ("noatime",), {"type": "ssd"}),
        DiskRequirement(DiskName("logs"), 512),
    )
    assert db.update == UpdatePolicy(1, 3, 60.0, 90.0)
    assert web.update == UpdatePolicy(2, 3, 60.0, 90.0)
    assert (db.networks, web.networks) == (("front", "back"), ("front",))
    assert (db.on_isolation, web.on_isolation) == (OnIsolation.STOP, OnIsolation.KEEP)
    assert (db.resurrection, web.resurrection) == (False, True)
    assert db.containers[0].environment == web.containers[0].environment == {"MODE": "fast"}
    assert db.containers[0].networks == ("front", "back")


def test_a_container_whose_name_looks_like_an_extension_is_a_container() -> None:
    """`x-` is passed over among keys, never among names: x-ray would be missed."""
    assert [
        one.name for one in only_group(FULL.replace("      app:\n        <<", "      x-ray:\n        <<")).containers
    ] == ["x-ray"]


def test_a_manifest_survives_being_written_down() -> None:
    """What the journal stores and reads back is equal to what was parsed."""
    manifest = parse_manifest(FULL, "m.yml").manifest
    assert codec.from_json(Manifest, codec.to_json(manifest)) == manifest


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_right(path: Path) -> None:
    """The files in examples/ are read without an error and survive being written down."""
    manifest = parse_manifest(
        path.read_bytes(), str(path), read_file=lambda name: (path.parent / name).read_text()
    ).manifest
    assert manifest.groups
    assert codec.from_json(Manifest, codec.to_json(manifest)) == manifest


def test_the_demo_has_a_chain_of_three() -> None:
    """What `make demo` shows: redis, what depends on it, and what depends on that."""
    shop = parse_manifest((ROOT / "examples/shop.yml").read_text(), "shop.yml").manifest
    db = {container.name: container for container in shop.groups[0].containers}
    assert [dependency.container for dependency in db[ContainerName("exporter")].depends_on] == ["redis"]
    assert [dependency.container for dependency in db[ContainerName("dashboard")].depends_on] == ["exporter"]
    assert shop.groups[0].disks == (DiskRequirement(DiskName("data"), 256),)


@pytest.mark.parametrize(
    ("written", "variables", "instances"),
    [
        ("${N}", {"N": "3"}, 3),
        ("$N", {"N": "3"}, 3),
        ("'${N}'", {"N": "3"}, 3),
        ("${N:-2}", {}, 2),
        ("${N:-2}", {"N": ""}, 2),
        ("${N-2}", {"N": "4"}, 4),
        ("${N:-${M:-5}}", {}, 5),
        ("1${N:+0}", {"N": "x"}, 10),
        ("${N:?why}", {"N": "7"}, 7),
    ],
)
def test_variables_are_filled_in_as_in_compose(written: str, variables: dict[str, str], instances: int) -> None:
    """Also where a number is expected, with and without quotes."""
    text = FULL.replace("instances: 3", f"instances: {written}")
    assert only_group(text, **variables).instances == instances


def test_the_environment_of_the_caller_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that only the environment has is undefined; `$$` stays a dollar sign."""
    monkeypatch.setenv("MODE_OF_TEST", "set")
    with pytest.raises(ManifestErrors, match="MODE_OF_TEST has no value"):
        parse_manifest(FULL.replace("fast", "$MODE_OF_TEST"), "m.yml")
    assert only_group(FULL.replace("fast", "$$HOME")).containers[0].environment == {"MODE": "$HOME"}


@pytest.mark.parametrize(
    ("clouds", "stemcells", "expected"),
    [
        (["local", "other"], {}, []),
        (["local", "other"], {"local": ["debian-12"], "other": ["debian-13"]}, []),
        (["local"], {"local": ["debian-12"]}, [(16, "there is no cloud 'other'")]),
        (["other"], {"other": []}, [(7, "there is no cloud 'local'"), (15, "no stemcell 'debian-13'; known: none")]),
        (["local", "other"], {"local": ["debian-11"]}, [(6, "did you mean debian-11?")]),
    ],
)
def test_clouds_and_stemcells_that_do_not_exist_are_named_with_their_line(
    clouds: list[str], stemcells: dict[str, list[str]], expected: list[tuple[int, str]]
) -> None:
    """The line is the group's own key, or the one at the top that holds for it."""
    errors = check_against(parse_manifest(FULL, "m.yml"), clouds, stemcells)
    assert [error.line for error in errors] == [line for line, _ in expected]
    for error, (_, fragment) in zip(errors, expected, strict=True):
        assert fragment in error.message


def test_the_manifest_in_the_documentation_is_right() -> None:
    """Who copies it gets no error."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/manifest.md").read_text(), re.MULTILINE | re.DOTALL)
    assert parse_manifest(block, "docs/manifest.md").manifest.name == "shop"


def test_every_key_is_documented() -> None:
    """docs/manifest.md has a row for each key that is read, and none that is not."""
    text = (ROOT / "docs/manifest.md").read_text().partition("## Coming from docker-boshrelease")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    known = {*compose.KEYS, *manifest_file.TOP_KEYS, *manifest_file.GROUP_KEYS, "cpus", "memory", "cloud_properties"}
    known |= {
        "size",
        "filesystem",
        "mount_options",
        "grow",
        "snapshots",
        "canaries",
        "max_in_flight",
        "canary_watch_time",
        "update_watch_time",
    }
    known |= {"test", "interval", "timeout", "retries", "start_period", "disable", "condition", "required"}
    assert documented == known


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
@example(b"\xff\xfe")
@example("\ud800")
@example("a: !!binary x")
@example("%YAML 9.9\n---\na")
@example("a: 'x")
@example("? a\n? b")
@example("&a [*a]")
@example("0x" + "f" * 40)
@example("1" * 5000)
@example("a: 1e400")
@example("\x00")
@example("...\n")
@example("---\n---\n")
def test_no_text_raises_anything_but_manifest_errors(text: bytes | str) -> None:
    """Random bytes and text are no manifest; they are refused in an orderly way."""
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml")
    assert str(caught.value).startswith("m.yml:")


KEYS = st.sampled_from(
    [
        *compose.KEYS,
        *manifest_file.TOP_KEYS,
        *manifest_file.GROUP_KEYS,
        "size",
        "test",
        "source",
        "target",
        "type",
        "x-a",
        "<<",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["data:/x", "80:80", "1GiB", "5s", "${A:-1}", "[::1]:1:2", "a:b:c:d", "-", "::", "/"]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4))
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(compose.KEYS), TREES, max_size=6), st.dictionaries(KEYS, TREES, max_size=4))
def test_no_structure_raises_anything_but_manifest_errors(container: dict[str, Any], group: dict[str, Any]) -> None:
    """Known keys with anything under them are read or refused."""
    document = {
        "name": "a",
        "stemcell": "s",
        "cloud": "c",
        "instance_groups": [{**group, "name": "g", "containers": {"cc": {"image": "i", **container}}}],
    }
    try:
        parsed = parse_manifest(yaml.safe_dump(document, allow_unicode=True), "m.yml")
    except ManifestErrors:
        return
    assert codec.from_json(Manifest, codec.to_json(parsed.manifest)) == parsed.manifest
