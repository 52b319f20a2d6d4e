"""nats-py's errors are the port's, also those that it makes up itself."""

from __future__ import annotations

import nats.errors
import nats.js.errors
import pytest

from protocol.bus import BlobsFull, BusError, BusUnavailable, NoResponders, WrongRevision
from protocol.nats_errors import errors


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (nats.errors.NoRespondersError(), NoResponders),
        (nats.js.errors.KeyWrongLastSequenceError(), WrongRevision),
        (nats.js.errors.KeyNotFoundError(), WrongRevision),  # it ran out while somebody was creating it
        (nats.js.errors.KeyDeletedError(entry=None, op="DEL"), BusUnavailable),
        (nats.js.errors.APIError(code=400, err_code=10071, description="wrong last sequence"), WrongRevision),
        (nats.js.errors.APIError(code=503, err_code=10047, description="insufficient storage"), BlobsFull),
        (nats.js.errors.ServiceUnavailableError(), BusUnavailable),
        (nats.errors.ConnectionClosedError(), BusUnavailable),
        (TimeoutError(), BusUnavailable),
        (OSError("gone"), BusUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_nats_py_raises(raised: Exception, expected: type[BusError]) -> None:
    """What is definite stays definite; the rest is an unknown outcome, and nothing else comes through."""
    with pytest.raises(expected), errors():
        raise raised
