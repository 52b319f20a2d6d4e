"""What the engine is told of registries: in its own files, beside what others wrote there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import registries
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.located_yaml import ManifestErrors
from protocol.ids import AgentId
from protocol.settings import AgentSettings, BusSettings, RegistrySettings

SECRET = "c2VjcmV0OnZlcnktc2VjcmV0"
AUTH = {"auths": {"registry.example:5000": {"auth": SECRET}}}


def settings(**registry: object) -> AgentSettings:
    plain = AgentSettings(AgentId("a"), BusSettings(("nats://127.0.0.1:4222",)))
    return plain.with_registries(RegistrySettings(**registry))  # type: ignore[arg-type]


def test_authorities_come_and_go_and_others_stay(tmp_path: Path) -> None:
    """Only files of our name are ours; a host that is a path writes nothing."""
    theirs = tmp_path / "certs.d" / "theirs" / "ca.crt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    told = settings(certificates={"registry.example:5000": "PEM", "../../evil": "PEM"})
    assert registries.write(told, tmp_path) is False
    assert (tmp_path / "certs.d/registry.example:5000/resurgam.crt").read_text() == "PEM"
    registries.write(settings(), tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "certs.d/theirs/ca.crt"
    ]


def test_mirrors_are_one_key_of_the_daemons_configuration(tmp_path: Path) -> None:
    """Everything else stays; it is read again only when something changed; what cannot be read is left alone."""
    file = tmp_path / "daemon.json"
    file.write_text('{"live-restore": true}')
    told = settings(mirrors=("https://mirror.example",))
    assert registries.write(told, tmp_path) is True
    assert json.loads(file.read_text()) == {"live-restore": True, "registry-mirrors": ["https://mirror.example"]}
    assert registries.write(told, tmp_path) is False
    assert registries.write(settings(), tmp_path) is True
    assert json.loads(file.read_text()) == {"live-restore": True, "registry-mirrors": []}
    assert registries.write(settings(), tmp_path) is False
    file.write_text("{")
    assert registries.write(told, tmp_path) is False
    assert file.read_text() == "{"


def configuration(directory: Path, auth: str = json.dumps(AUTH), text: str = "") -> Path:
    (directory / "auth.json").write_text(auth)
    (directory / "auth.json").chmod(0o600)
    (directory / "ca.pem").write_text("PEM")
    file = directory / "healthmonitor.yml"
    file.write_text(
        text
        or "registries:\n  auth_file: auth.json\n  mirrors: ['https://mirror.example']\n"
        "  ca_files: {'registry.example:5000': ca.pem}\n"
    )
    return file


def test_a_configuration_reaches_the_settings_of_a_vm_and_shows_no_login(tmp_path: Path) -> None:
    """From files; of the login file only the logins; no text of either shows them."""
    with_more = json.dumps({**AUTH, "credsStore": "desktop"})
    loaded = load_configuration(configuration(tmp_path, with_more))
    told = loaded.registries
    assert told == RegistrySettings(AUTH, ("https://mirror.example",), {"registry.example:5000": "PEM"})
    vm = settings(auth=told.auth)
    for text in (repr(loaded), repr(told), repr(vm), str(vm)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("auth", "text", "says"),
    [
        ("{}", "", "as docker login writes it"),
        ('{"auths": {"a": "b"}}', "", "as docker login writes it"),
        ("[", "", "as docker login writes it"),
        ("{}", "registries: {auth: x}\n", "secrets come from files: write auth_file"),
        ("{}", "registries: {insecure: [x]}\n", "give the authority"),
        ("{}", "registries: {mirrors: ['ftp://x']}\n", "expected https://HOST"),
        ("{}", "registries: {mirrors: ['https://me:pass@x']}\n", "without user and path"),
        ("{}", "registries: {ca_files: {'../x': ca.pem}}\n", "is no registry"),
        ("{}", "registries: {ca_files: {'x:1': missing.pem}}\n", "missing.pem"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, auth: str, text: str, says: str) -> None:
    """Before anything is used, and without the content of a login file."""
    with pytest.raises(ManifestErrors) as caught:
        load_configuration(configuration(tmp_path, auth, text))
    assert says in str(caught.value)
