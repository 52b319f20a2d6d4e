"""Instance records read from bytes, with what many have in common kept once.

Law: what is read is what `codec.from_json` reads, down to the errors.
"""

from __future__ import annotations

import msgspec

from healthmonitor.core.manifest import InstanceGroup
from healthmonitor.core.records import InstanceRecord
from protocol import codec

GROUPS_MAX = 10_000
"""Different groups remembered; beyond it all are forgotten, which costs memory and nothing else."""

_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])


class InstanceReader:
    """Reads instance records. All instances of a group carry the same group in their records, which is most of each
    record: it is read once and shared, or a big fleet would keep it a hundred thousand times."""

    def __init__(self) -> None:
        self._groups: dict[bytes, InstanceGroup] = {}

    def read(self, payload: bytes) -> InstanceRecord:
        try:
            parts = _parts.decode(payload)
            raw = bytes(parts["group"])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
            return codec.from_json(InstanceRecord, payload)  # which says what is wrong
        group = self._groups.get(raw)
        if group is None:
            record = codec.from_json(InstanceRecord, payload)
            if len(self._groups) >= GROUPS_MAX:
                self._groups.clear()
            self._groups[raw] = record.group
            return record
        try:
            rest = {name: group if name == "group" else msgspec.json.decode(part) for name, part in parts.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # What is passed over raw is not looked at closely: text that is no UTF-8 shows only here.
            return codec.from_json(InstanceRecord, payload)
        return codec.from_plain(InstanceRecord, rest)
