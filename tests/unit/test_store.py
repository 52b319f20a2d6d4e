"""What the agent keeps: whole or not at all, private, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.core.desired import Held
from agent.store import Store
from tests.support.agent import make_spec


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """A specification comes back equal, from a file that only root may read."""
    document = Store(tmp_path / "state").document("held", Held)
    assert document.load() is None
    document.save(Held(make_spec(7)))
    assert document.load() == Held(make_spec(7))
    assert (tmp_path / "state" / "held.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"spec": 5}', b"\xff\xff", b"\0" * 4096])
def test_a_broken_file_is_moved_aside_and_named(
    tmp_path: Path, broken: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent goes on without it, a person finds it, and the next save works."""
    document = Store(tmp_path).document("held", Held)
    (tmp_path / "held.json").write_bytes(broken)
    assert document.load() is None
    assert (tmp_path / "held.json.corrupt-0").read_bytes() == broken
    assert "held.json" in capsys.readouterr().out
    document.save(Held(make_spec()))
    assert document.load() == Held(make_spec())


def test_broken_files_do_not_pile_up(tmp_path: Path) -> None:
    """Three are kept, whatever happens."""
    document = Store(tmp_path).document("held", Held)
    for number in range(10):
        (tmp_path / "held.json").write_text(f"broken {number}")
        document.load()
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 3


def test_a_write_that_fails_leaves_the_old_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at any moment before the rename: the old document is whole."""
    document = Store(tmp_path).document("held", Held)
    document.save(Held(make_spec(1)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        document.save(Held(make_spec(2)))
    monkeypatch.undo()
    assert document.load() == Held(make_spec(1))
    document.save(Held(make_spec(3)))
    assert document.load() == Held(make_spec(3))
