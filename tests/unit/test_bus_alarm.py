"""The note that the loss of the bus was told."""

from __future__ import annotations

from pathlib import Path

from healthmonitor.bus_alarm import NoteInFile
from tests.support.alerts import incident


def test_a_note_is_found_by_the_next_process_and_gone_once_it_is_over(tmp_path: Path) -> None:
    """Also where its directory is not there yet; what cannot be read is no note."""
    path = tmp_path / "state" / "bus-lost-a.json"
    alarm = incident("monitor", "bus_lost")
    assert NoteInFile(path).load() is None
    NoteInFile(path).save(alarm)
    assert path.stat().st_mode & 0o777 == 0o600
    assert NoteInFile(path).load() == alarm
    path.write_bytes(b"\xff{")
    assert NoteInFile(path).load() is None
    NoteInFile(path).save(None)
    NoteInFile(path).save(None)
    assert NoteInFile(path).load() is None
