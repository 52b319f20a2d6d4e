"""nats-py's errors as the port's (`protocol/bus.py`).

Law: what is definite (wrong revision, nobody listens, no room) stays definite; the rest is an unknown outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import nats.errors
import nats.js.errors

from protocol.bus import BlobsFull, BusUnavailable, NoResponders, WrongRevision

_NO_ROOM = frozenset({10047, 10077})
"""JetStream's error codes: no storage left, and a stream's own limit reached."""


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """nats-py's errors as the port's. What is definite (wrong revision, nobody listens) stays definite; the rest is
    an unknown outcome. A cancellation that came in the same moment as the answer, which `asyncio.wait_for` (used inside
    nats-py) drops in Python 3.11, is made good: otherwise the task would go on for ever."""
    task = asyncio.current_task()
    cancellations = task.cancelling() if task is not None else 0
    try:
        yield
        if task is not None and task.cancelling() > cancellations:
            raise asyncio.CancelledError
    except nats.errors.NoRespondersError:
        raise NoResponders("nobody listens") from None
    except nats.js.errors.KeyWrongLastSequenceError as error:
        raise WrongRevision(str(error.description or error)) from None
    except nats.js.errors.KeyNotFoundError as error:
        # A key that was there when it was to be created, and had run out when nats-py looked whose it was
        raise WrongRevision(str(error)) from None
    except nats.js.errors.APIError as error:
        # Those that nats-py makes up itself lack the attributes
        code, said = getattr(error, "err_code", None), getattr(error, "description", None) or str(error)
        if code in (10071, 10164):
            raise WrongRevision(said) from None
        if code in _NO_ROOM:
            raise BlobsFull(said) from None
        raise BusUnavailable(f"JetStream: {said}") from error
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise BusUnavailable(repr(error)) from error
