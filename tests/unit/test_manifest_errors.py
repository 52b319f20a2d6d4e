"""Wrong manifests: each gets a message with its line and cause, beside every other error in the same text."""

from __future__ import annotations

import pytest

from healthmonitor.core.located_yaml import ERRORS_MAX, ManifestErrors
from healthmonitor.core.manifest_file import parse_manifest

FILES = {"good.env": "A=1\nB='two'\n", "bad.env": "A=1\nnot a line\n", "undefined.env": "A=$NOWHERE\n"}


def read_file(path: str) -> str:
    try:
        return FILES[path]
    except KeyError:
        raise FileNotFoundError(path) from None


def container(body: str) -> str:
    """A manifest whose container `cc` begins at line 9; `other` has a health check, `bare` has not."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return (
        "name: shop\nstemcell: s\ncloud: local\ninstance_groups:\n  - name: db\n    persistent_disks: {data: 1GiB}\n"
        "    containers:\n      cc:\n"
        + lines
        + "      other:\n        image: other:1\n        healthcheck: {test: [CMD, 'true']}\n"
        + "      bare: {image: bare:1}\n"
    )


def group(body: str) -> str:
    """A manifest whose group's further keys begin at line 6."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return "name: shop\nstemcell: s\ncloud: local\ninstance_groups:\n  - name: db\n" + lines


def with_growth(grow: str) -> str:
    return with_container(f"persistent_disks: {{data: {{size: 1GiB, grow: {{{grow}}}}}}}")


def with_container(body: str) -> str:
    return group(body + "\ncontainers: {cc: {image: a}}")


MANIFESTS: list[tuple[str, int, str]] = [
    # the text as a whole
    ("", 1, "empty"),
    ("# only a comment\n", 1, "empty"),
    ("- a\n- b\n", 1, "expected a mapping that begins with name:, found a list"),
    ("name: shop\n\tcloud: x\n", 2, "tab"),
    ("name: [a\nb: c\n", 2, "not YAML"),
    ("name: shop\n---\nname: other\n", 2, "second document"),
    ("name: *nowhere\n", 1, "names no anchor"),
    ("name: a\n? [x, y]\n: 1\n", 2, "list or mapping as a key"),
    ("name: a\n? \n: 1\n", 2, "empty key"),
    ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)),
     6, "aliases are written out"),
    ("a: " + "[" * 60 + "]" * 60, 1, "deeper than 40"),
    ("name: a\nnote: " + "x" * 1_100_000, 1, "at most 1048576"),
    ("name: !!python/object:os.system x\n", 1, "tag"),
    ("name: a\n<<: 3\n", 2, "<< takes a mapping"),
    # top level
    ("name: shop\ninstance_groups: []\n", 2, "no group"),
    ("name: shop\nname: shop\n", 2, "second time (first in line 1)"),
    ("nmae: shop\n", 1, "did you mean name?"),
    ("instance_groups: {a: b}\n", 1, "expected a list of groups"),
    ("name: Shop!\n", 1, "no deployment's name"),
    ("name:\n", 1, "found nothing"),
    ("services: {}\n", 1, "containers stand in a group"),
    ("version: '3'\n", 1, "leave it out"),
    ("releases: []\n", 1, "there are no releases"),
    ("update: {canaries: -1}\n", 1, "out of range; expected 0 to 1000"),
    ("update: {max_in_flight: 0}\n", 1, "expected 1 to 1000"),
    ("update: {canary_watch_time: 1000-30000}\n", 1, "BOSH's range of milliseconds"),
    ("update: {update_watch_time: 300}\n", 1, "300 has no unit"),
    ("update: {serial: true}\n", 1, "one after another"),
    ("networks: [bridge]\n", 1, "every VM has"),
    ("networks: {back: {ipam: {}}}\n", 1, "ipam is not supported"),
    ("name: ${NAME}\n", 1, "variable NAME has no value; give --var NAME="),
    ("name: ${NAME:?set it}\n", 1, "NAME is required: set it"),
    ("name: a$\n", 1, "write $$ for a dollar sign"),
    ("name: ${oops\n", 1, "without its closing }"),
    # groups
    (group("containers: {}"), 6, "no container"),
    (group("instances: 1"), 5, "containers is missing"),
    (with_container("instances: 1001"), 6, "expected 0 to 1000"),
    (with_container("instances: two"), 6, "expected a whole number, 0 to 1000, found 'two'"),
    (with_container("instances: '2'"), 6, "found '2'"),
    (with_container("instances: 1.5"), 6, "found the number 1.5"),
    (with_container("instances: true"), 6, "found the boolean true"),
    (with_container("vm: {memory: 1024}"), 6, "1024 has no unit; write 1024MiB"),
    (with_container("vm: {memory: 64MiB}"), 6, "expected 128MiB to"),
    (with_container("vm: {memory: lots}"), 6, "'lots' is not a size"),
    (with_container("vm: {memory: 1500k}"), 6, "whole number of MiB"),
    (with_container("vm: {cpus: 0}"), 6, "expected 1 to 1024"),
    (with_container("vm: {cpus: 1, ram: 1GiB}"), 6, "write memory"),
    (with_container("vm: {cloud_properties: [a]}"), 6, "found a list"),
    (with_container("vm_type: small"), 6, "write vm: {cpus"),
    (with_container("persistent_disk: 65536"), 6, "write persistent_disks"),
    (with_container("persistent_disks: {data: 10}"), 6, "10 has no unit"),
    (with_container("persistent_disks: {data: 0GiB}"), 6, "0GiB is out of range; expected 16MiB"),
    (with_container("persistent_disks: {data: 0}"), 6, "0 has no unit"),
    (with_container("persistent_disks: {data: -1GiB}"), 6, "'-1GiB' is not a size"),
    (with_container("persistent_disks: {data: {filesystem: ext4}}"), 6, "size is missing"),
    (with_container("persistent_disks: {data: {size: 1GiB, filesystem: ntfs}}"), 6, "one of ext4, xfs"),
    (with_container("persistent_disks: {Data: 1GiB}"), 6, "no disk's name"),
    (with_container("persistent_disks: {data: 1GiB, data: 2GiB}"), 6, "second time"),
    (with_container("persistent_disks: {data: {size: 1GiB, mount_options: [ro]}}"), 6, "mount option 'ro'"),
    (with_container("persistent_disks: {data: {size: 1GiB, grow: {at: 85%, by: 25%}}}"), 6, "up_to is missing"),
    (with_container("persistent_disks: {data: {size: 1GiB, grow: 25%}}"), 6, "such as {at: 85%, by: 25%, up_to: 100"),
    (with_container("persistent_disks: {data: {size: 1GiB, snapshots: {every: 24h}}}"), 6, "keep is missing"),
    (with_container("persistent_disks: {data: {size: 1GiB, snapshots: {every: 24, keep: 7}}}"), 6, "24 has no unit"),
    (with_container("persistent_disks: {data: {size: 1GiB, snapshots: {every: 1s, keep: 7}}}"), 6, "out of range"),
    (with_container("persistent_disks: {data: {size: 1GiB, snapshots: {every: 1h, keep: 0}}}"), 6, "1 to 100"),
    (with_growth("at: 85%, by: 25%, up_to: 1GiB"), 6, "more than the disk's size, 1GiB"),
    (with_growth("at: 10%, by: 25%, up_to: 2GiB"), 6, "at least 50%"),
    (with_growth("at: 185%, by: 25%, up_to: 2GiB"), 6, "at most 100%"),
    (with_growth("at: 85%, by: 0, up_to: 2GiB"), 6, "more than 0"),
    (with_growth("at: 85%, by: 25%, up_to: 20"), 6, "20 has no unit"),
    (with_growth("at: 85%, by: 25%, upto: 20GiB"), 6, "did you mean up_to"),
    (with_container("on_isolation: explode"), 6, "one of keep, stop"),
    (with_container("resurrection: maybe"), 6, "expected true or false"),
    (with_container("jobs: []"), 6, "write containers"),
    (with_container("azs: [z1]"), 6, "no availability zones"),
    (with_container("contianers: {}"), 6, "did you mean containers?"),
    (with_container("name: db"), 6, "second time"),
    (group("containers: {Web: {image: a}}"), 6, "no container's name"),
    (group("containers: {w: {image: a}}"), 6, "at least 2 characters"),
    (group("containers: [a]"), 6, "expected a mapping of container"),
    (group("containers: {cc: {image: a}}") + "  - name: db\n    containers: {cc: {image: a}}\n", 7,
     "second group 'db'"),
    (group("k" * 201 + ": 1"), 6, "a key of 201 characters"),
    # containers: image, command, environment
    (container("command: x"), 8, "image is missing"),
    (container("image: Redis"), 9, "no image"),
    (container("image: 'a b'"), 9, "no image"),
    (container("image: a\nimgae: b"), 10, "did you mean image?"),
    (container("image: a\ncommand: \"sh -c 'x\""), 10, "no closing quotation"),
    (container("image: a\nenvironment: {A: true}"), 10, "in quotes"),
    (container("image: a\nenvironment: [A]"), 10, "environment of your shell is not passed on"),
    (container("image: a\nenvironment: {A: }"), 10, "environment of your shell is not passed on"),
    (container("image: a\nenvironment: [A=1, A=2]"), 10, "A stands here a second time"),
    (container("image: a\nenvironment: {A: $B}"), 10, "variable B has no value"),
    (container("image: a\nenv_file: none.env"), 10, "none.env does not exist"),
    (container("image: a\nworking_dir: here"), 10, "is relative"),
    (container("image: a\nstop_signal: die now"), 10, "is no signal"),
    (container("image: a\nstop_grace_period: 10"), 10, "10 has no unit; write 10s"),
    (container("image: a\nstop_grace_period: 1y"), 10, "is not a duration"),
    (container("image: a\nrestart: sometimes"), 10, 'one of "no", always'),
    (container("image: a\nrestart: on-failure:x"), 10, "expected such as on-failure:3"),
    (container("image: a\nrestart: always:3"), 10, 'one of "no", always'),
    (container("image: a\npull_policy: often"), 10, "one of missing, always, never, store"),
    (container("image: a\npull_policy: build"), 10, "build is not supported"),
    (container("image: a\non_oom: cry"), 10, "one of alert, restart, ignore"),
    # ports and networks
    (container("image: a\nports: [abc]"), 10, "is no port"),
    (container("image: a\nports: ['0:80']"), 10, "'0' is no port"),
    (container("image: a\nports: ['70000:80']"), 10, "'70000' is no port"),
    (container("image: a\nports: ['80-90:80']"), 10, "11 host ports for 1 container ports"),
    (container("image: a\nports: ['80:80/icmp']"), 10, "protocol 'icmp'"),
    (container("image: a\nports: ['1.2.3:80:80']"), 10, "not an IP address"),
    (container("image: a\nports: ['80:80', '127.0.0.1:80:81']"), 10, "host port 80/tcp is taken by c"),
    (container("image: a\nports: [{published: 80}]"), 10, "target is missing"),
    (container("image: a\nports: ['1-2000:1-2000']"), 10, "at most 1000"),
    (container("image: a\nports: 80"), 10, "expected a list such as"),
    (container("image: a\nexpose: [none]"), 10, "is no port"),
    (container("image: a\nnetwork_mode: service:nobody"), 10, "unknown container 'nobody'"),
    (container("image: a\nnetwork_mode: overlay"), 10, "expected host, none, bridge or service:NAME"),
    (container("image: a\nnetwork_mode: host\nports: ['80:80']"), 11, "cannot be combined with network_mode: host"),
    (container("image: a\nnetworks: [back]"), 10, "unknown network 'back'"),
    (container("image: a\nextra_hosts: ['a:b:c:d']"), 10, "expected \"name:address\""),
    (container("image: a\ndns: nowhere"), 10, "is not an IP address"),
    (container("image: a\nmac_address: 1:2"), 10, "is no MAC address"),
    (container("image: a\nhostname: 'a b'"), 10, "is no host name"),
    # storage
    (container("image: a\nvolumes: [/data]"), 10, "anonymous volume"),
    (container("image: a\nvolumes: ['./x:/x']"), 10, "is relative"),
    (container("image: a\nvolumes: ['~/x:/x']"), 10, "is relative"),
    (container("image: a\nvolumes: ['dta:/x']"), 10, "did you mean data?"),
    (container("image: a\nvolumes: ['data:x']"), 10, "expected an absolute path"),
    (container("image: a\nvolumes: ['data:/']"), 10, "expected an absolute path"),
    (container("image: a\nvolumes: ['data:/x', '/y:/x']"), 10, "/x is mounted twice"),
    (container("image: a\nvolumes: ['data:/x:z']"), 10, "option 'z' is not supported"),
    (container("image: a\nvolumes: ['data/../etc:/x']"), 10, "without .."),
    (container("image: a\nvolumes: ['data/other:/x']"), 10, "belongs to the container of that name"),
    (container("image: a\nvolumes: ['/a/../b:/x']"), 10, "with .. in it"),
    (container("image: a\nvolumes: [{type: npipe, target: /x}]"), 10, "one of volume, bind, tmpfs"),
    (container("image: a\nvolumes: [{type: bind, source: data, target: /x}]"), 10, "an absolute path of the VM"),
    (container("image: a\nvolumes: [{type: volume, target: /x}]"), 10, "source is missing"),
    (container("image: a\ntmpfs: run"), 10, "expected an absolute path"),
    (container("image: a\ndevices: [ttyUSB0]"), 10, "expected absolute paths"),
    (container("image: a\ndevices: ['/dev/a:/dev/a:xyz']"), 10, "permissions 'xyz'"),
    # dependencies and health
    (container("image: a\ndepends_on: [othr]"), 10, "did you mean other?"),
    (container("image: a\ndepends_on: [other, other]"), 10, "a second time"),
    (container("image: a\ndepends_on: [cc]"), 10, "circle of dependencies: cc → cc"),
    (container("image: a\ndepends_on: {bare: {condition: service_healthy}}"), 10, "bare has no healthcheck"),
    (container("image: a\ndepends_on: {bare: {condition: healthy}}"), 10, "did you mean service_healthy?"),
    (container("image: a\ndepends_on: {bare: {condition: service_completed_successfully}}"), 10, "never completes"),
    (container("image: a\ndepends_on: {bare: {required: false}}"), 10, "required: false is not supported"),
    (container("image: a\nhealthcheck: {interval: 5s}"), 10, "test is missing"),
    (container("image: a\nhealthcheck: {test: [redis-cli, ping]}"), 10, 'expected ["CMD"'),
    (container("image: a\nhealthcheck: {test: x, interval: 5}"), 10, "5 has no unit"),
    (container("image: a\nhealthcheck: {test: x, retries: 0}"), 10, "expected 1 to 1000"),
    (container("image: a\nhealthcheck: {test: x, start_interval: 5s}"), 10, "newer engine"),
    # limits
    (container("image: a\nmem_limit: 512"), 10, "512m was meant?"),
    (container("image: a\nmem_limit: much"), 10, "is not a size"),
    (container("image: a\nmem_limit: 64m\nmemswap_limit: 32m"), 11, "at least mem_limit"),
    (container("image: a\nmem_reservation: 64m\nmem_limit: 32m"), 10, "at most mem_limit"),
    (container("image: a\ncpus: -1"), 10, "out of range"),
    (container("image: a\nvolumes: [\"elsewhere:/x\"]"), 10, "'elsewhere' is no persistent disk of this group"),
    (container("image: a\ncpus: 1\ncpu_quota: 5000"), 11, "cannot be combined with cpus"),
    (container("image: a\ncpus: 1\ndeploy: {resources: {limits: {cpus: 2}}}"), 11, "leave one out"),
    (container("image: a\ndeploy: {replicas: 2}"), 10, "only in Swarm"),
    (container("image: a\nulimits: {nofiles: 3}"), 10, "did you mean nofile?"),
    (container("image: a\nulimits: {nofile: {soft: 9, hard: 3}}"), 10, "soft 9 is above hard 3"),
    (container("image: a\ncap_add: [net-admin]"), 10, "is no capability"),
    (container("image: a\nlabels: {org.resurgam.instance: x}"), 10, "the agent's own"),
    (container("image: a\nlogging: {drivr: x}"), 10, "did you mean driver?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "fragment"), MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_wrong_manifest_is_refused_with_line_and_cause(text: str, line: int, fragment: str) -> None:
    """Each text is refused, and one of its errors names the line and says what is wrong."""
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml", read_file=read_file)
    found = [(error.line, error.message) for error in caught.value.errors]
    assert any(at == line and fragment in message for at, message in found), str(caught.value)
    assert all(row.startswith("m.yml:") for row in str(caught.value).splitlines())


SINGLE = [(text, line, fragment) for text, line, fragment in MANIFESTS if "containers:\n      cc:\n" in text]


@pytest.mark.parametrize(("text", "line", "fragment"), SINGLE, ids=range(len(SINGLE)))
def test_one_mistake_does_not_hide_another(text: str, line: int, fragment: str) -> None:
    """With two further mistakes in the text, at its beginning and end, all three are reported, sorted by line."""
    text = text.replace("cloud: local", "cloud: []", 1) + "    wrong_key: 1\n"
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml", read_file=read_file)
    errors = caught.value.errors
    assert any(error.line == line and fragment in error.message for error in errors), str(caught.value)
    assert any(error.line == 3 and "found a list" in error.message for error in errors)
    assert any(error.line == len(text.splitlines()) and "wrong_key" in error.message for error in errors)
    assert [error.line for error in errors] == sorted(error.line for error in errors)


REFUSED_KEYS = [
    ("bind_ports", "ports"),
    ("bind_volumes", "volumes: [DISK:/path]"),
    ("cap_adds", "cap_add"),
    ("cap_drops", "cap_drop"),
    ("disable_content_trust", "@sha256"),
    ("dns_options", "dns_opt"),
    ("dockerfile", "stemcell"),
    ("env_vars", "environment"),
    ("expose_ports", "expose"),
    ("group_adds", "group_add"),
    ("kernel_memory", "mem_limit"),
    ("links", "depends_on"),
    ("log_driver", "logging"),
    ("log_options", "logging"),
    ("lxc_options", "LXC"),
    ("memory", "mem_limit"),
    ("memory_reservation", "mem_reservation"),
    ("memory_swap", "memswap_limit"),
    ("memory_swappiness", "mem_swappiness"),
    ("name", "the key under containers"),
    ("net", "network_mode"),
    ("security_options", "security_opt"),
    ("store_dir", "volumes"),
    ("timeout", "start_period"),
    ("workdir", "working_dir"),
    ("build", "elsewhere"),
    ("container_name", "the key under containers"),
    ("scale", "instances"),
    ("profiles", "manifest"),
    ("extends", "anchor"),
    ("secrets", "volumes"),
    ("configs", "volumes"),
    ("platform", "image"),
    ("cpuset", "cpus"),
]


@pytest.mark.parametrize(("key", "equivalent"), REFUSED_KEYS)
def test_a_key_of_docker_boshrelease_or_compose_names_its_equivalent(key: str, equivalent: str) -> None:
    """A key that is not read here is refused with what to write instead, not with "unknown"."""
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(container(f"image: a\n{key}: x"), "m.yml")
    (error,) = caught.value.errors
    assert error.line == 10
    assert equivalent in error.message
    assert "unknown" not in error.message


DOCKER_BOSHRELEASE = (
    "name image dockerfile disable_content_trust labels hostname command entrypoint workdir "
    "user group_adds stop_signal restart timeout env_vars env_file depends_on links "
    "bind_ports expose_ports net dns dns_options dns_search mac_address volumes bind_volumes "
    "volumes_from volume_driver store_dir read_only memory memory_reservation memory_swap memory_swappiness "
    "kernel_memory oom_kill_disable cpu_shares cpu_period cpu_quota blkio_weight ulimits privileged cap_adds cap_drops "
    "security_options devices log_driver log_options lxc_options "
)


@pytest.mark.parametrize("key", DOCKER_BOSHRELEASE.split())
def test_every_property_of_docker_boshrelease_is_known(key: str) -> None:
    """Each property of its `containers` job is read under its own name, or refused with a reason."""
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(container(f"image: a\n{key}: {{a: {{b: [c]}}}}" if key != "image" else "image: {}"), "m.yml")
    about = [error for error in caught.value.errors if f"containers.cc.{key}" in error.path]
    assert about
    assert not any(error.path.endswith(f".{key}") and "unknown key" in error.message for error in about), str(
        caught.value
    )


def test_errors_in_an_env_file_name_that_file_and_line() -> None:
    """Two env files with a mistake each: both are reported under their own names, values never shown."""
    text = container("image: a\nenv_file: [good.env, bad.env, undefined.env]")
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml", read_file=read_file)
    assert [(error.file, error.line) for error in caught.value.errors] == [("bad.env", 2), ("undefined.env", 1)]


def test_a_circle_of_dependencies_is_named_whole() -> None:
    """Three containers in a circle: one error, with the way round."""
    text = group(
        "containers:\n  aa: {image: a, depends_on: [bb]}\n  bb: {image: a, depends_on: [cc]}\n"
        "  cc: {image: a, depends_on: [aa]}"
    )
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml")
    (error,) = caught.value.errors
    assert "aa → bb → cc → aa" in error.message
    assert error.line == 7


def test_two_containers_of_a_group_cannot_have_one_host_port() -> None:
    """The second one is told who has it; another protocol or address is fine."""
    text = group(
        "containers:\n  aa: {image: a, ports: ['80:80', '127.0.0.1:81:1']}\n"
        "  bb: {image: a, ports: ['80:81', '80:80/udp', '127.0.0.2:81:1']}"
    )
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml")
    (error,) = caught.value.errors
    assert (error.line, "taken by aa (line 7)" in error.message) == (8, True)


BOMBS = {
    "unknown keys": "".join(f"imaage{number}: 1\n" for number in range(50_000)),
    "unknown dependencies": container("image: a\ndepends_on: [" + ",".join(f"othr{n}" for n in range(20_000)) + "]"),
    "ranges of ports": container("image: a\nports: [" + ",".join(["1-1000:1-1000"] * 20_000) + "]"),
    "merges": "a: &a {" + ",".join(f"k{n}: 1" for n in range(2000)) + "}\nb: {<<: [" + ",".join(["*a"] * 20_000) + "]}",
    "anchors": "".join(f"a{n}: &a{n} [x]\n" for n in range(30_000)),
    "brackets": "a: " + "[" * 500_000,
    "long scalar": "name: " + "a" * 1_000_000,
    "dollars": "name: " + "${A:-" * 100_000,
    "long key": "? " + "k" * 900_000 + "\n: 1\n",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_text_made_to_take_long_is_refused(text: str) -> None:
    """Up to 1 MiB of whatever is worst ends in a bounded number of errors, within the time-out above."""
    with pytest.raises(ManifestErrors) as caught:
        parse_manifest(text, "m.yml")
    assert len(caught.value.errors) <= ERRORS_MAX + 1
    assert len(str(caught.value)) < 200_000
