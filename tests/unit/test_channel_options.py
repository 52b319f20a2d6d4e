"""What channels may be told: every error with its line and cause, and the pages that follow from the tables."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from healthmonitor.channels.build import TYPES, build_channels, channel_errors
from healthmonitor.core.configuration import CHANNEL_TYPES, ChannelConfiguration, parse_configuration
from healthmonitor.core.located_yaml import ManifestErrors
from tests.support.certificates import make_authority
from tests.support.channel_tables import name_rows, option_rows, type_rows

DOCS = Path(__file__).parents[2] / "docs" / "channels"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "KEY": "from-the-environment", "EMPTY": "", "PAGER_TOKEN": "t"}
SECRET = "s3cr3t-t0ken"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, text, mode in (
        ("key", SECRET, 0o600),
        ("open", SECRET, 0o644),
        ("empty", "\n", 0o600),
        ("two", f"{SECRET}\n{SECRET}\n", 0o600),
        ("no.pem", "hello", 0o644),
        ("urls", "# ours\njson://127.0.0.1/x\n", 0o600),
        ("bad-urls", f"json://127.0.0.1/x\nnosuch://{SECRET}\n", 0o600),
        ("bad-url", f"ftp://{SECRET}/x", 0o600),
        ("control", "a\tb", 0o600),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    make_authority(tmp_path / "good")
    make_authority(tmp_path / "old", days=-1)
    loose = tmp_path / "loose.pem"
    loose.write_bytes((tmp_path / "good" / "ca.pem").read_bytes())
    loose.chmod(0o666)
    return tmp_path


def read(file: Path) -> tuple[ChannelConfiguration, ...]:
    return parse_configuration(file.read_bytes(), str(file), str(file.parent)).channels


MAIL = "host: h, from: a@b.org, to: c@d.org"
WRONG: list[tuple[str, str, int, str]] = [
    ("log", "file: x", 5, "unknown option of log 'file'; known here: none"),
    ("email", f"{MAIL}\nhots: x", 6, "unknown option of email 'hots'; did you mean host?"),
    (
        "email",
        f"{MAIL}\npassword: {SECRET}",
        6,
        "secrets never stand in this file: write password_file or password_env",
    ),
    ("email", "host: h", 3, "from is missing: the sender"),
    ("email", "host: h", 3, "to is missing: the recipients"),
    ("email", "host: h, from: nobody, to: c@d.org", 5, "'nobody' is no mail address"),
    ("email", "host: h, from: a@b.org, to: [c@d.org, 'x y@z']", 5, "'x y@z' is no mail address"),
    ("email", 'host: h, from: a@b.org, to: ["c@d.org\\nBcc: e@f.org"]', 5, "is no mail address"),
    ("email", "host: h, from: a@b.org, to: []", 5, "at least one address"),
    ("email", f"{MAIL}\nport: 99999", 6, "'99999': expected 1 to 65535"),
    ("email", f"{MAIL}\ntls: maybe", 6, "'maybe': expected one of starttls, implicit, none"),
    ("email", f"{MAIL}\ntimeout: 5", 6, "5 has no unit; write 5s"),
    ("email", f"{MAIL}\ntimeout: 2h", 6, "2h is out of range; expected 100ms to 5m"),
    ("email", f"{MAIL}\nuser: u", 6, "needs password_file or password_env beside it"),
    ("email", f"{MAIL}\npassword_file: key", 6, "needs user beside it"),
    ("email", f"{MAIL}\nuser: u\npassword_file: nowhere", 7, "/nowhere: No such file or directory"),
    ("email", f"{MAIL}\nuser: u\npassword_file: open", 7, "everybody on this machine may read it; chmod 600"),
    ("email", f"{MAIL}\nuser: u\npassword_file: empty", 7, "is empty"),
    ("email", f"{MAIL}\nuser: u\npassword_file: two", 7, "more than one line"),
    ("email", f"{MAIL}\nuser: u\npassword_env: NONE", 7, "the environment has no NONE"),
    ("email", f"{MAIL}\nuser: u\npassword_env: EMPTY", 7, "the environment has no EMPTY, or it is empty"),
    ("email", f"{MAIL}\nuser: u\npassword_file: key\npassword_env: KEY", 8, "cannot be combined with password_file"),
    ("email", f"{MAIL}\nuser: u\npassword_file: key\ntls: none", 8, "in the clear; write starttls or implicit"),
    ("email", f"{MAIL}\nca_file: nowhere.pem", 6, "nowhere.pem: No such file or directory"),
    ("email", f"{MAIL}\nca_file: no.pem", 6, "no.pem: holds no certificate that can be read"),
    ("email", f"{MAIL}\nca_file: loose.pem", 6, "everybody on this machine may replace it; chmod 644"),
    ("email", f"{MAIL}\nca_file: old/ca.pem", 6, "every certificate in it has expired"),
    ("pagerduty", "region: eu", 3, "routing_key_file or routing_key_env is missing"),
    ("pagerduty", "routing_key_file: key\nurl: events.pagerduty.com", 6, "is no address of a web service"),
    ("pagerduty", "routing_key_file: key\nurl: http://pd.example.org/", 6, "in the clear; write https://"),
    ("pagerduty", "routing_key_file: key\nregion: mars", 6, "expected one of us, eu"),
    ("webhook", "method: POST", 3, "an address is missing: url, or secret_url_file"),
    ("webhook", f"url: https://u:{SECRET}@h/", 5, "secrets never stand in an address"),
    ("webhook", "url: https://h/\nsecret_url_file: key", 6, "key: is no address of a web service"),
    ("webhook", "secret_url_file: bad-url", 5, "is no address of a web service"),
    ("webhook", "url: http://h/\nheaders: {X: {file: key}}", 6, "the address must begin with https://"),
    ("webhook", "url: https://h/\nheaders: {X: {file: open}}", 6, "X: everybody on this machine may read it"),
    ("webhook", "url: https://h/\nheaders: {X: {file: nowhere}}", 6, "nowhere: No such file or directory"),
    ("webhook", "url: https://h/\nheaders: {X: {file: control}}", 6, "holds what no header may hold"),
    ("webhook", 'url: https://h/\nheaders: {X: "a\\r\\nY: b"}', 6, "holds what no header may hold"),
    ("webhook", 'url: https://h/\nheaders: {"X Y": z}', 6, "'X Y' is no header that can be set"),
    ("webhook", "url: https://h/\nheaders: {Host: z}", 6, "'Host' is no header that can be set"),
    ("webhook", "url: https://h/\nheaders: {X: {value: z}}", 6, "expected text, {file: PATH} or {env: NAME}"),
    ("webhook", "url: https://h/\nbody: {a: '${sumary}'}", 6, "unknown name 'sumary'; did you mean summary?"),
    ("webhook", "url: https://h/\nbody: 5", 6, "expected a mapping, a list or text"),
    ("alertmanager", "labels: {a: b}", 3, "urls is missing"),
    ("alertmanager", "urls: [http://a:1, b]", 5, "is no address of a web service"),
    ("alertmanager", "urls: http://127.0.0.1:1\nlabels: {a-b: c}", 6, "'a-b' is no label's name"),
    ("alertmanager", "urls: http://127.0.0.1:1\nlabels: {severity: c}", 6, "a label that Resurgam sets itself"),
    ("alertmanager", "urls: http://am:1\ntoken_file: key", 5, "in the clear; write https://"),
    ("alertmanager", "urls: https://am:1\nuser: u\npassword_file: key\ntoken_file: key", 8, "cannot be combined"),
    ("apprise", "timeout: 5s", 3, "urls_file or urls_env is missing"),
    ("apprise", "urls_file: bad-urls", 5, "line 2 is no address that Apprise knows"),
    ("apprise", "urls_env: KEY", 5, "line 1 is no address that Apprise knows"),
    ("exec", "environment: [PATH]", 3, "command is missing"),
    ("exec", "command: /bin/true", 5, "there is no shell"),
    ("exec", "command: [/no/such/program]", 5, "/no/such/program: no such program, or it may not be run"),
    ("exec", "command: [sh]\nenvironment: [NONE]", 6, "the environment has no NONE"),
]


@pytest.mark.parametrize(("kind", "options", "line", "message"), WRONG)
def test_an_error_names_line_and_cause(kind: str, options: str, line: int, message: str, site: Path) -> None:
    """What is wrong stands at its line, says what was expected, and shows no secret; nothing is built."""
    file = site / "healthmonitor.yml"
    inside = ",\n".join(f"      {part}" for part in options.splitlines())
    file.write_text(f"channels:\n  - name: it\n    type: {kind}\n    options: {{\n{inside}\n    }}\n")
    channels = read(file)
    errors = channel_errors(channels, str(file), time.time, ENVIRONMENT)
    found = [(each.line, each.message) for each in errors if message in each.message]
    assert [each for each, _ in found] == [line], "\n".join(map(str, errors))
    assert all(SECRET not in str(each) for each in errors)
    assert all(str(each).startswith(f"{file}:") for each in errors)
    with pytest.raises(ManifestErrors):
        build_channels(channels, str(file), time.time, ENVIRONMENT)


def example(page: str, number: int = 0) -> str:
    found: list[str] = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return found[number]


EXAMPLES = [*((f"{name}.md", 0) for name in TYPES), ("webhook.md", 1)]


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
async def test_the_example_of_each_page_works(page: str, number: int, site: Path) -> None:
    """With the files that it names, the example makes a channel of the page's type that shows no secret."""
    text = example(page, number).replace("/usr/local/bin/page-us", "/bin/cat")
    for named in re.findall(r"file: ([a-z-]+)", text):
        words = {"chat-url": f"https://h/{SECRET}", "apprise-urls": f"json://{SECRET}@h/x"}.get(named, SECRET)
        (site / named).write_text(words)
        (site / named).chmod(0o600)
    file = site / "healthmonitor.yml"
    file.write_text(text)
    configurations = read(file)
    assert [each.type for each in configurations] == [page.removesuffix(".md")]
    assert channel_errors(configurations, str(file), time.time, ENVIRONMENT) == []
    [channel] = build_channels(configurations, str(file), time.time, ENVIRONMENT)
    assert channel.name == configurations[0].name
    assert SECRET not in repr(channel) + str(vars(channel))
    await channel.close()


@pytest.mark.parametrize("name", TYPES)
def test_each_page_has_the_table_of_its_options(name: str) -> None:
    """The page is what the code says (`python -m tests.support.channel_tables`)."""
    page = (DOCS / f"{name}.md").read_text()
    assert "\n".join(option_rows(TYPES[name])) in page


def test_the_list_of_types_and_of_names_is_the_code_s() -> None:
    """docs/channels/README.md lists every type, docs/channels/webhook.md every name of a template."""
    assert "\n".join(type_rows()) in (DOCS / "README.md").read_text()
    assert "\n".join(name_rows()) in (DOCS / "webhook.md").read_text()


def test_an_unknown_type_is_named_with_the_nearest(site: Path) -> None:
    """Whoever reads it: the configuration file's reader, and the channels' own."""
    file = site / "healthmonitor.yml"
    file.write_text("channels:\n  - {name: a, type: emial}\n")
    with pytest.raises(ManifestErrors, match=r"2: .*expected one of .*did you mean email"):
        read(file)
    [error] = channel_errors([ChannelConfiguration("a", "emial", place=(2, 21))], str(file), time.time, {})
    assert str(error) == f"{file}:2: channels.a.type: unknown type 'emial'; did you mean email?"
    assert set(TYPES) == set(CHANNEL_TYPES)


def test_all_errors_of_all_channels_are_found_at_once(site: Path) -> None:
    """Two channels, four errors, one reading; what is right in between does not hide them."""
    file = site / "healthmonitor.yml"
    file.write_text(
        "channels:\n  - {name: a, type: pagerduty}\n  - {name: b, type: log}\n"
        "  - {name: c, type: email, options: {host: 5, prot: 1}}\n"
    )
    channels = read(file)
    with pytest.raises(ManifestErrors) as caught:
        build_channels(channels, str(file), time.time, ENVIRONMENT)
    assert [each.line for each in caught.value.errors] == [2, 4, 4, 4, 4]
