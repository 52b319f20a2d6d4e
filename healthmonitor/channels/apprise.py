"""Apprise, for the hundred-odd services that have no channel of their own here (chats, SMS, desktop, other pagers).

Laws: the addresses of the services are secrets. Apprise blocks, so each call runs in a thread, with a deadline; one
that hangs beyond it cannot be ended, so no more than a few may hang before the channel says so and starts no other. A
service that took a notification is not given it again while others are still tried.

Does not know: why a service refuses (Apprise tells apart success and failure only), so every failure is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from healthmonitor.channels import options as option
from healthmonitor.channels.channel import ChannelUnavailable, Notification, Receipt, Transition
from healthmonitor.channels.options import ChannelType, Sources
from healthmonitor.channels.partial import Taken
from healthmonitor.channels.rendering import one_line, plain_text, subject_line
from healthmonitor.channels.secret import Secret, hide
from healthmonitor.core.records import Severity

HANGING_MAX = 4


@dataclass(frozen=True, slots=True)
class Service:
    """`shown`: how errors call it."""

    shown: str
    notify: Callable[[str, str, str], bool]  # title, body, kind


class AppriseChannel:
    def __init__(
        self, name: str, services: tuple[Service, ...], timeout_seconds: float, secrets: tuple[Secret, ...]
    ) -> None:
        self._name = name
        self._services = services
        self._timeout_seconds = timeout_seconds
        self._secrets = secrets
        self._hanging = 0
        self._taken = Taken()

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        taken = self._taken.by(notification.id)
        rest = [each for each in self._services if each.shown not in taken]
        answers = await asyncio.gather(*(self._call(each, notification) for each in rest))
        failed = {each.shown: why for each, why in zip(rest, answers, strict=True) if why}
        self._taken.add(notification.id, {each.shown for each in rest} - set(failed))
        if failed:
            text = "; ".join(f"{shown}: {why}" for shown, why in failed.items())
            raise ChannelUnavailable(one_line(hide(text, self._secrets), 1000))
        self._taken.forget(notification.id)
        return Receipt(f"taken by {', '.join(each.shown for each in self._services)}")

    async def reach(self) -> None:
        return None  # which server it is, only Apprise knows

    async def close(self) -> None:
        return None

    async def _call(self, service: Service, notification: Notification) -> str:
        """ "" or why not."""
        if self._hanging >= HANGING_MAX:
            return f"{self._hanging} earlier calls still hang; look at the network"
        # Apprise escapes the body for services that show HTML, but not the title.
        title = _calm(subject_line(notification)).translate(_ANGLES)
        body = _calm(plain_text(notification))
        result = self._in_thread(lambda: _notify(service, title, body, _kind(notification)))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(result)
        except TimeoutError:
            self._hanging += 1
            result.add_done_callback(self._hangs_no_more)
            return f"no answer within {self._timeout_seconds:g} s"

    def _hangs_no_more(self, result: asyncio.Future[str]) -> None:
        self._hanging -= 1

    def _in_thread(self, call: Callable[[], str]) -> asyncio.Future[str]:
        """A daemon thread: one that hangs must not keep the monitor from ending, as an executor's would."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()

        def done(why: str) -> None:
            if not result.done():
                result.set_result(why)

        def run() -> None:
            try:
                why = call()
            except Exception as error:
                # A thread's edge: whatever a service's plugin raises is a failure of that service alone.
                why = f"{type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done, why)

        threading.Thread(target=run, name=f"apprise-{self._name}", daemon=True).start()
        return result


_PINGS = re.compile(r"@(?=(?:everyone|here|channel|all)\b)|<(?=[!@#])", re.IGNORECASE)
_ANGLES = str.maketrans(
    "<>", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
)


def _calm(text: str) -> str:
    """A log line that says @everyone wakes nobody but those whom the route names."""
    return _PINGS.sub(lambda found: f"{found[0]} ", text)


def _notify(service: Service, title: str, body: str, kind: str) -> str:
    return "" if service.notify(title, body, kind) else "it did not take the notification"


def _kind(notification: Notification) -> str:
    if notification.transition is Transition.RESOLVED:
        return "success"
    if notification.transition in (Transition.TEST, Transition.ACKNOWLEDGED):
        return "info"
    return "warning" if notification.severity is Severity.WARNING else "failure"


def services_of(addresses: Secret) -> tuple[Service, ...]:
    """ValueError names the line, never the address."""
    if importlib.util.find_spec("apprise") is None:
        raise ValueError("needs the package apprise: pip install 'resurgam[alerts]'")
    import apprise  # an optional extra

    # Below warnings Apprise logs whole addresses with their tokens.
    logging.getLogger("apprise").setLevel(logging.WARNING)
    found: list[Service] = []
    for number, line in enumerate(addresses.reveal().splitlines(), 1):
        address = line.strip()
        if not address or address.startswith("#"):
            continue
        plugin = apprise.Apprise.instantiate(address)
        if plugin is None:
            raise ValueError(f"line {number} is no address that Apprise knows")
        alone = apprise.Apprise()
        alone.add(plugin)
        found.append(Service(f"service {len(found) + 1} ({plugin.service_name})", _caller(alone)))
    if not found:
        raise ValueError("holds no address; expected one Apprise URL in a line")
    return tuple(found)


def _caller(service: Any) -> Callable[[str, str, str], bool]:
    return lambda title, body, kind: bool(service.notify(body=body, title=title, notify_type=kind, body_format="text"))


def _parts(addresses: Secret) -> tuple[Secret, ...]:
    """Whatever in an address may be a token."""
    return tuple(Secret(word) for word in re.split(r"[\s/:@?&=#]+", addresses.reveal()) if len(word) >= 6)


def _check_addresses(text: str) -> None:
    services_of(Secret(text))


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> AppriseChannel:
    addresses = values["urls"]
    return AppriseChannel(name, services_of(addresses), values["timeout"], _parts(addresses))


APPRISE = ChannelType(
    "the hundred-odd services that Apprise knows",
    (
        *option.secret("urls", "Apprise URLs, one in a line", required=True, lines=True, check=_check_addresses),
        option.timeout(30.0),
    ),
    _make,
)
