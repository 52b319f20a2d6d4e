"""Single values of a container in Compose's notation: image, command, health check, limits, logging.

Law: what the engine would refuse when the container is created is refused here, with the line.
"""

from __future__ import annotations

import re
import shlex

from healthmonitor.core import units
from healthmonitor.core.yaml_places import Place, unknown
from protocol.spec import Healthcheck, Logging, PullPolicy, Restart, Ulimit

MEMORY_MIN_BYTES = 6 * 1024 * 1024
"""Docker's own minimum."""


def read_image(place: Place) -> str:
    text = place.text("an image such as redis:7")
    if text and (not _IMAGE.fullmatch(text) or len(text) > 400):
        lower = "; names of images are lower-case" if _IMAGE.fullmatch(text.lower()) else ""
        place.error(f"{text!r} is no image; expected such as redis:7 or registry:5000/team/app@sha256:…{lower}")
    return text


def read_command(place: Place) -> tuple[str, ...]:
    if place.is_list:
        return tuple("" if item.node.value == "" else item.text() for item in place.items())
    if place.node.value == "":
        return ()
    try:
        return tuple(shlex.split(place.text("a command, as text or as a list")))
    except ValueError as error:
        place.error(f"{str(error).lower()} in the command; a list of arguments needs no quoting")
        return ()


def read_healthcheck(place: Place) -> Healthcheck | None:
    fields = place.fields(
        ("test", "interval", "timeout", "retries", "start_period", "disable"),
        {"start_interval": "needs a newer engine than those supported; use interval and start_period"},
        extensions=True,
    )
    if "disable" in fields and fields["disable"].boolean():
        return Healthcheck(("NONE",))
    test = _health_test(fields["test"]) if "test" in fields else ()
    if "test" not in fields:
        place.key_error(
            'test is missing; expected test: ["CMD", "redis-cli", "ping"], a shell command as text, or disable: true '
            "(write it also when the image has one of its own: the manifest says what healthy means)"
        )
    defaults = Healthcheck(test)
    longest = 86400.0
    return Healthcheck(
        test=test,
        interval_seconds=fields["interval"].duration(0.1, longest)
        if "interval" in fields
        else defaults.interval_seconds,
        timeout_seconds=fields["timeout"].duration(0.1, longest) if "timeout" in fields else defaults.timeout_seconds,
        retries=fields["retries"].integer(1, 1000) if "retries" in fields else defaults.retries,
        start_period_seconds=fields["start_period"].duration(0.0, longest) if "start_period" in fields else 0.0,
    )


def _health_test(place: Place) -> tuple[str, ...]:
    if not place.is_list:
        text = place.text("a shell command, or a list that begins with CMD or CMD-SHELL")
        return ("CMD-SHELL", text) if text else ()
    test = place.texts()
    if test == ("NONE",):
        return test
    if len(test) < 2 or test[0] not in ("CMD", "CMD-SHELL") or (test[0] == "CMD-SHELL" and len(test) != 2):
        place.error('expected ["CMD", "program", "argument"…], ["CMD-SHELL", "command"] or ["NONE"]')
    return test


def read_restart(place: Place) -> tuple[Restart, int]:
    # A bare no is a boolean in YAML 1.1; both ways of writing it are meant alike.
    text = "no" if place.node.value is False else place.text("a restart policy")
    policy, colon, limit = text.partition(":")
    if policy not in {member.value for member in Restart} or (colon and policy != Restart.ON_FAILURE.value):
        place.wrong('one of "no", always, on-failure, on-failure:3, unless-stopped')
        return Restart.ALWAYS, 0
    if colon and not (limit.isascii() and limit.isdigit() and 1 <= len(limit) <= 6 and int(limit) > 0):
        place.error(f"{limit!r} restarts; expected such as on-failure:3")
        return Restart.ON_FAILURE, 0
    return Restart(policy), int(limit) if colon else 0


def read_bytes(place: Place) -> int:
    """Compose takes a bare number as bytes."""
    if isinstance(place.node.value, int) and not isinstance(place.node.value, bool):
        return place.integer(0, 2**62)
    text = place.text("a size such as 512m")
    return _parsed_bytes(place, text) if text else 0


def _parsed_bytes(place: Place, text: str) -> int:
    try:
        return units.size_bytes(text)
    except ValueError as error:
        place.error(str(error))
        return 0


def read_memory(place: Place) -> int:
    count = read_bytes(place)
    if 0 < count < MEMORY_MIN_BYTES:
        place.error(
            f"{count} bytes is less than the engine's minimum of 6m; a bare number is bytes: {count}m was meant?"
        )
    return count


def read_swap(place: Place) -> int:
    return -1 if place.node.value == -1 else read_memory(place)


def read_cpus(place: Place) -> float:
    return place.decimal(0.01, 1024)


def read_pids(place: Place) -> int:
    return max(0, place.integer(-1, 4_194_304))


def read_microseconds(place: Place) -> int:
    if place.is_text:
        return round(place.duration(0.001, 1.0) * 1_000_000)
    return place.integer(1000, 100_000_000)


def read_ulimits(place: Place) -> tuple[Ulimit, ...]:
    limits = []
    for name, inner in place.members("a mapping such as {nofile: 8192}").items():
        if not _ULIMIT.fullmatch(name):
            inner.key_error(unknown("ulimit", name, _ULIMITS))
        if inner.is_mapping:
            fields = inner.fields(("soft", "hard"))
            if len(fields) < 2:
                inner.error("expected both soft and hard")
                continue
            soft, hard = (fields[key].integer(-1, 2**62) for key in ("soft", "hard"))
        else:
            soft = hard = inner.integer(-1, 2**62)
        if hard != -1 and (soft > hard or soft == -1):
            inner.error(f"soft {soft} is above hard {hard}")
        limits.append(Ulimit(name, soft, hard))
    return tuple(sorted(limits, key=lambda limit: limit.name))


def read_logging(place: Place) -> Logging:
    fields = place.fields(("driver", "options"))
    bounded = Logging()
    driver = fields["driver"].text("a log driver") if "driver" in fields else bounded.driver
    options = {}
    if "options" in fields and not fields["options"].is_null:
        options = {key: inner.text() for key, inner in fields["options"].members().items()}
    # A json-file without max-size grows until the VM's disk is full; max-size: "-1" asks for that.
    return Logging(driver, {**bounded.options, **options} if driver == bounded.driver else options)


def read_labels(place: Place) -> dict[str, str]:
    labels = place.pairs("=", 'a list of "name=value"', bare=True)
    for key in labels:
        if key.startswith("org.resurgam."):
            place.error(f"{key}: labels that begin with org.resurgam. are the agent's own")
    return labels


def read_stop_signal(place: Place) -> str:
    text = place.text("a signal").upper()
    if text and not _SIGNAL.fullmatch(text):
        place.error(f"{text!r} is no signal; expected such as SIGTERM or SIGINT")
    return text if text.isdigit() or text.startswith("SIG") else f"SIG{text}"


def read_capabilities(place: Place) -> tuple[str, ...]:
    names = []
    for item in place.items("a list such as [NET_ADMIN]"):
        name = item.text("a capability").upper().removeprefix("CAP_")
        if name and not _CAPABILITY.fullmatch(name):
            item.error(f"{name!r} is no capability; expected such as NET_ADMIN or ALL")
        names.append(name)
    return tuple(sorted(set(names)))


def read_pull_policy(place: Place) -> PullPolicy:
    if place.node.text == "if_not_present":
        return PullPolicy.MISSING
    if place.node.text in ("build", "daily", "weekly") or place.node.text.startswith("every_"):
        place.error(f"{place.node.text} is not supported; expected missing, always, never or store")
        return PullPolicy.MISSING
    return place.choice(PullPolicy, PullPolicy.MISSING)


def read_path(place: Place) -> str:
    text = place.text("an absolute path")
    if text and not text.startswith("/"):
        place.error(f"{text!r} is relative; expected an absolute path in the container")
    return text


_IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-fA-F]{32,128})?"
)
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
_ULIMIT = re.compile("|".join(_ULIMITS))
_SIGNAL = re.compile(r"(SIG)?[A-Z]{2,}[A-Z0-9]*([+-]\d{1,2})?|[1-9][0-9]?")
_CAPABILITY = re.compile(r"[A-Z][A-Z_]{2,40}")
