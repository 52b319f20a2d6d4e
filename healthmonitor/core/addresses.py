"""Addresses in the configuration: the bus's URLs and where HTTP listens.

Law: no secret stands in a URL; what is not certainly loopback counts as reachable by others.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from healthmonitor.core.yaml_places import Place

_SCHEMES = ("nats", "tls", "ws", "wss")


def read_urls(place: Place) -> tuple[str, ...]:
    urls: list[str] = []
    items = place.items("a list such as [nats://127.0.0.1:4222]") if place.is_list else [place]
    if not items:
        place.error("no address; expected at least one such as nats://127.0.0.1:4222")
    for item in items:
        text = item.text("an address such as nats://127.0.0.1:4222")
        if text:
            wrong = _wrong_url(text)
            if wrong:
                item.error(wrong)
            else:
                urls.append(text)
    return tuple(urls)


def read_public_url(place: Place) -> str:
    """Without a slash at its end. Links that it is the beginning of are secrets for a while, so no clear HTTP."""
    text = place.text("an address such as https://monitor.example.org")
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    plain = text.isascii() and text.isprintable() and not any(character in text for character in " \"'<>\\")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine or not plain or len(text) > 300:
        place.error(f"{text[:80]!r} is no address; expected such as https://monitor.example.org")
    elif parts.query or parts.fragment or "?" in text or "#" in text or parts.username is not None:
        place.error("expected scheme, host and perhaps port and path, such as https://monitor.example.org")
    elif parts.scheme == "http" and not is_loopback(text):
        place.error("links would go over the network in the clear; it must begin with https://")
    else:
        return text.rstrip("/")
    return ""


def read_listen(place: Place, default: tuple[str, int]) -> tuple[str, int]:
    text = place.text("an address such as 127.0.0.1:25923")
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not host or not digits or int(port) > 65535:
        if text:
            place.error(f"{text!r} is no address to listen on; expected HOST:PORT such as 127.0.0.1:25923")
        return default
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            place.error(f"{host!r} is not an IP address of this machine (0.0.0.0 is all of them)")
            return default
    return host, int(port)


def is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wrong_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        return f"not an address ({error}); expected such as nats://127.0.0.1:4222"
    if parts.username or parts.password:
        return "a user or password in the address; write user and password_file, so that no secret stands here"
    if parts.scheme not in _SCHEMES or not host:
        return f"{text[:80]!r} is no address of a bus; expected nats://HOST:PORT (or tls://, ws://, wss://)"
    if port == 0 or parts.path not in ("", "/") or parts.query:
        return f"{text[:80]!r}: expected only a host and a port after {parts.scheme}://"
    return ""
