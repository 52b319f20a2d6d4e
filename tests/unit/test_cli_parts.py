"""The parts of the command that need no API: names, lengths of time, places, options, uploads, Redis' protocol."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from healthmonitor.cli.addressing import find_instance, instances_matching
from healthmonitor.cli.demo_data import DemoData, DemoFailed
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.manifest_upload import read_env_files
from healthmonitor.cli.place import find_place
from healthmonitor.cli.redis_wire import Redis, RedisRefused, Reply
from healthmonitor.cli.screen import duration, parse_duration, plain_table
from healthmonitor.cli.session import globals_first

KNOWN = ["shop/db/0", "shop/db/1", "shop/web/0", "blog/db/0", "blog/cache/0"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("shop/db/0", ["shop/db/0"]),
        ("db/1", ["shop/db/1"]),
        ("web/0", ["shop/web/0"]),
        ("cache", ["blog/cache/0"]),
        ("shop/web", ["shop/web/0"]),
        ("db/0", ["shop/db/0", "blog/db/0"]),
        ("db", ["shop/db/0", "shop/db/1", "blog/db/0"]),
        ("blog", ["blog/db/0", "blog/cache/0"]),
        ("db/7", []),
        ("", []),
        ("shop/db/0/x", []),
    ],
)
def test_short_names_mean_what_they_can(text: str, found: list[str]) -> None:
    """A name without its deployment means every instance that it may be; only one is taken."""
    assert instances_matching(text, KNOWN) == found
    if len(found) == 1:
        assert find_instance(text, KNOWN) == found[0]
    else:
        with pytest.raises(CliFailure) as failure:
            find_instance(text, KNOWN)
        assert failure.value.code is ExitCode.USAGE
        assert failure.value.next_step


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (65, "1 min 05 s"),
        (3600, "1 h 00 min"),
        (90061, "1 d 1 h"),
        (-5, "-5.0 s"),
    ],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_lengths_of_time_as_people_write_them(text: str, seconds: float) -> None:
    """A number with its unit; a bare number is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5m", "0", "5 weeks", "nan", "1e99d", "inf"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    """Nothing is guessed, and nothing is for ever."""
    with pytest.raises(CliFailure):
        parse_duration(text)


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["status", "--output", "json"], ["--output", "json", "status"]),
        (["status", "-o=json", "x"], ["-o=json", "status", "x"]),
        (["up", "--dir", "d", "--config", "c"], ["--dir", "d", "up", "--config", "c"]),
        (["logs", "--", "--dir", "x"], ["logs", "--", "--dir", "x"]),
        (["status", "--output"], ["--output", "status"]),
    ],
)
def test_global_options_may_stand_anywhere(given: list[str], ordered: list[str]) -> None:
    """They are moved to the front; what follows `--` is left as it is."""
    assert globals_first(given) == ordered


def test_the_nearest_site_is_found(tmp_path: Path) -> None:
    """The option before the environment before this directory before home; the token from the file that is named."""
    for place in ("named", "variable", "here/.resurgam", "home/.local/state/resurgam"):
        directory = tmp_path / place
        directory.mkdir(parents=True)
        (directory / "api.json").write_text(json.dumps({"url": f"http://{directory.name}"}))
        (directory / "api-token").write_text(f"token of {place}\n")
    here, home = tmp_path / "here", tmp_path / "home"
    variable = {"RESURGAM_DIR": str(tmp_path / "variable")}
    assert find_place(None, tmp_path / "named", variable, here, home).token == "token of named"
    assert find_place(None, None, variable, here, home).token == "token of variable"
    assert find_place(None, None, {}, here, home).token == "token of here/.resurgam"
    assert find_place(None, None, {}, tmp_path, home).token == "token of home/.local/state/resurgam"
    assert find_place("http://far:1/", None, {}, here, home).url == "http://far:1"
    with pytest.raises(CliFailure) as failure:
        find_place(None, tmp_path / "nowhere", {}, here, home)
    assert failure.value.code is ExitCode.UNREACHABLE
    (tmp_path / "named" / "api-token").unlink()
    with pytest.raises(CliFailure) as failure:
        find_place(None, tmp_path / "named", {}, here, home)
    assert failure.value.code is ExitCode.NOT_ALLOWED


@pytest.mark.parametrize(
    ("container", "names"),
    [
        ("{env_file: a.env}", ["a.env"]),
        ("{env_file: [a.env, b.env, a.env]}", ["a.env", "b.env"]),
        ("{env_file: {path: a.env}}", ["a.env"]),
        ("{env_file: [{path: a.env, format: raw}, b.env]}", ["a.env", "b.env"]),
        ("{env_file: [{path: none.env, required: false}, b.env]}", ["b.env"]),
        ("{env_file: [none.env, b.env]}", ["b.env"]),
        ("{env_file: '$WHERE.env'}", ["a.env"]),
        ("{env_file: '${ELSEWHERE:-b}.env'}", ["b.env"]),
        ("{env_file: '${UNKNOWN}.env'}", []),
        ("{env_file: 'a$$b.env'}", ["a$b.env"]),
        ("{env_file: a.env, nonsense: 1}", ["a.env"]),
        ("{image: x}", []),
        ("[1, 2]", []),
    ],
)
def test_env_files_are_found(container: str, names: list[str], tmp_path: Path) -> None:
    """Whatever way Compose allows to write them, with variables as the parser puts them in; what is not there is left
    to the monitor, which knows whether it must be and names the line, as it does with all other errors."""
    for name in ("a.env", "b.env", "a$b.env"):
        (tmp_path / name).write_text(f"FROM={name}\n".replace("$", "$$"))
    text = f"name: shop\ninstance_groups: [{{name: g, containers: {{c: {container}}}}}]\n"
    found = read_env_files(text, tmp_path / "shop.yml", {"WHERE": "a"})
    assert list(found) == names


def test_an_env_file_that_cannot_be_read_ends_the_command(tmp_path: Path) -> None:
    """It is there, so the monitor must not be told that it is not."""
    (tmp_path / "a.env").write_bytes(b"A=\xff\n")
    text = "name: shop\ninstance_groups: [{name: g, containers: {c: {image: x, env_file: a.env}}}]\n"
    with pytest.raises(CliFailure, match=r"a\.env cannot be read"):
        read_env_files(text, tmp_path / "shop.yml", {})


@pytest.mark.parametrize("text", ["", "[", "1", "instance_groups: 3", "instance_groups: [3]"])
def test_a_manifest_that_is_none_names_no_files(text: str, tmp_path: Path) -> None:
    """Nothing is raised: the monitor says what is wrong, with the line."""
    assert read_env_files(text, tmp_path / "shop.yml", {}) == {}


def test_a_plain_table_is_aligned() -> None:
    """Without a terminal columns are padded with blanks, and lines have no trailing ones."""
    assert plain_table(("a", "bb"), [("xyz", "1"), ("x", "")]) == "A    BB\nxyz  1\nx"


class RedisServer:
    """Enough of Redis to answer the demonstration's commands, in a thread of its own."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                while line := file.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        size = int(file.readline()[1:])
                        words.append(file.read(size + 2)[:-2])
                    answer = self._answer(words)
                    if answer is None:
                        break
                    connection.sendall(answer)

    def _answer(self, words: list[bytes]) -> bytes | None:
        match words:
            case [b"SET", key, value]:
                self.values[key] = value
                return b"+OK\r\n"
            case [b"GET", key]:
                found = self.values.get(key)
                return b"$-1\r\n" if found is None else b"$%d\r\n%b\r\n" % (len(found), found)
            case [b"LIST"]:
                return b"*3\r\n:7\r\n$3\r\na\r\n\r\n*0\r\n"
            case [b"SHUTDOWN", *_]:
                return None
            case _:
                return b"-ERR not allowed\r\n"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.close()


def test_replies_of_every_kind_are_read(server: RedisServer) -> None:
    """Strings, numbers, nothing, lists and errors; a lost connection is an OSError."""
    with Redis("127.0.0.1", server.port, 5) as redis:
        assert redis.call("SET", "k", b"a\r\nb") == b"OK"
        assert redis.call("GET", "k") == b"a\r\nb"
        assert redis.call("GET", "none") is None
        listed: Reply = [7, b"a\r\n", []]
        assert redis.call("LIST") == listed
        with pytest.raises(RedisRefused, match="not allowed"):
            redis.call("DEBUG", "SEGFAULT")
        with pytest.raises(OSError):
            redis.call("SHUTDOWN")


def test_lost_data_are_not_overlooked(server: RedisServer) -> None:
    """The demonstration's proof fails when one value is lost or another one than was written."""
    data = DemoData("127.0.0.1", server.port)
    before = data.write()
    data.write_more("later")
    assert data.check("at once") == before
    assert "SHUTDOWN" in data.end_redis()
    assert data.check("after its end") == before
    server.values[b"demo:0007"] = b"other"
    with pytest.raises(DemoFailed, match="1 of 501 keys"):
        data.check("changed")
    del server.values[b"later:0"]
    with pytest.raises(DemoFailed, match="2 of 501 keys"):
        data.check("lost")
