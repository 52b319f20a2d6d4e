"""Links from a notification to the page of its incident, for whoever was sent it and for a while.

Laws:
- A link opens one incident's page and nothing else, until it expires; who changes anything in it has no link.
- Its key comes from the API's token (`http.token_file`), so every monitor of a site that has the same token opens the
  links of the others, and a new token ends all links. Nothing of the token can be learnt from a link.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import urlencode

PATH = "/incident"
VALID_SECONDS = 14 * 86400.0
"""Notifications of what lasts are repeated at least daily unless somebody set it otherwise, each with a new link."""
_PURPOSE = b"resurgam: links to incidents, 1"


def link(public_url: str, token: str, incident_key: str, now_unix: float) -> str:
    """ "" when there is no public address to link to. Without a token only people on the monitor's machine can open
    the page, and need no signature."""
    if not public_url:
        return ""
    query = {"key": incident_key}
    if token:
        until = str(int(now_unix + VALID_SECONDS))
        query |= {"until": until, "sign": _signature(token, incident_key, until)}
    return f"{public_url}{PATH}?{urlencode(query)}"


def is_signed(token: str, incident_key: str, until: str, signature: str, now_unix: float) -> bool:
    """Whether whoever brings this may see the incident."""
    if not token or not (until.isascii() and until.isdigit() and len(until) < 16):
        return False
    genuine = hmac.compare_digest(_signature(token, incident_key, until).encode(), signature.encode())
    return genuine and now_unix < int(until)


def _signature(token: str, incident_key: str, until: str) -> str:
    key = hmac.digest(token.encode(), _PURPOSE, "sha256")
    return base64.urlsafe_b64encode(hmac.digest(key, f"{until}\n{incident_key}".encode(), "sha256")[:18]).decode()
