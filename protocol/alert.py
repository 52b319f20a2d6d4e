"""An alert as BOSH's agents and director send it: `hm.agent.alert.<id>` and `hm.director.alert`."""

from __future__ import annotations

import msgspec

from protocol.heartbeat import Malformed

ALERT_MAX_BYTES = 64 * 1024


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """`severity`: 1 alert, 2 critical, 3 error, 4 warning. `created_at`: Unix seconds."""

    title: str
    severity: int
    created_at: int
    id: str = ""
    summary: str = ""
    source: str = ""
    deployment: str = ""


_decoder = msgspec.json.Decoder(Alert)


def encode(alert: Alert) -> bytes:
    return msgspec.json.encode(alert)


def decode(payload: bytes) -> Alert:
    """The alert in `payload`; raises Malformed, also when the severity is not 1 to 4."""
    if len(payload) > ALERT_MAX_BYTES:
        raise Malformed(f"{len(payload)} bytes, more than {ALERT_MAX_BYTES}")
    try:
        alert = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if not 1 <= alert.severity <= 4:
        raise Malformed(f"severity {alert.severity} is not 1 to 4")
    return alert
