"""What agents said is shared, packed, and still theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from healthmonitor.core import last_words
from healthmonitor.core.last_words import REPACK_SECONDS, WHOLE_MAX, Archive, Words
from protocol import heartbeat as wire
from protocol.heartbeat import ContainerReport, ContainerState, EngineState, Extension, Heartbeat
from protocol.ids import InstanceId

INSTANCE = InstanceId("shop/web/0")


def payload(
    n: int,
    sequence: int = 1,
    state: ContainerState = ContainerState.RUNNING,
    cpu: str = "1.0",
    deployment: str = "shop",
) -> bytes:
    said = Extension(
        generation=1,
        revision=1,
        sequence=sequence,
        boot_id=f"boot-{n}",
        sent_at_seconds=float(sequence),
        instance=f"shop/web/{n}",
        engine=EngineState.UP,
        containers=(ContainerReport("redis", state, container_id=f"{n:064x}", since_seconds=sequence),),
    )
    return wire.encode(
        Heartbeat(deployment=deployment, job_state="running", vitals={"cpu": {"sys": cpu}}, resurgam=said)
    )


def keep(archive: Archive, words: Words, said: bytes, at: float = 0.0, agents: int = 1) -> bool:
    return archive.keep(words, wire.glance(said), said, INSTANCE, at, agents)


@pytest.mark.parametrize("agents", [1, WHOLE_MAX + 1])
def test_only_what_is_new_is_news(agents: int) -> None:
    """Sequence, time and figures are not; a container's state is, and so is another instance that it claims to be."""
    archive, words = Archive(), Words()
    news = [
        keep(archive, words, said, agents=agents)
        for said in (
            payload(0, 1),
            payload(0, 2, cpu="2.0"),
            payload(0, 3, ContainerState.CRASH_LOOP),
            payload(0, 4, ContainerState.CRASH_LOOP),
            payload(1, 5, ContainerState.CRASH_LOOP),
            payload(1, 6, ContainerState.CRASH_LOOP),
            b'{"job_state":"running"}',
            b'{"job_state":"running"}',
            b'{"job_state":"failing"}',
        )
    ]
    assert news == [True, False, True, False, True, False, True, False, True]


def test_who_says_the_same_shares_one_value() -> None:
    """Also when boots, instances, sequences and container ids differ: nobody judges by those."""
    archive = Archive()
    everybody = [Words() for _ in range(5)]
    for n, words in enumerate(everybody):
        archive.keep(words, wire.glance(payload(n, n)), payload(n, n), InstanceId(f"shop/web/{n}"), 0.0, 1)
    assert all(words.glance is everybody[0].glance for words in everybody)
    assert [words.claims for words in everybody] == [f"shop/web/{n}" for n in range(5)]


def test_a_claim_is_the_very_object_that_is_known() -> None:
    """So it costs nothing; another claim is kept as it was made."""
    archive, words = Archive(), Words()
    keep(archive, words, payload(0))
    assert words.claims is INSTANCE
    keep(archive, words, payload(7))
    assert words.claims == "shop/web/7"


def test_the_whole_is_as_it_was_said() -> None:
    """Decoded when somebody asks: of few agents always the last one."""
    archive, words = Archive(), Words()
    assert last_words.whole(words) is None
    for sequence in (1, 2):
        said = payload(0, sequence, cpu=f"{sequence}.0")
        keep(archive, words, said)
        assert last_words.whole(words) == wire.decode(said)


def test_of_many_the_whole_is_packed_and_at_most_two_minutes_behind() -> None:
    """Figures may be so old; news never are."""
    archive, words = Archive(), Words()
    first = payload(0, 1)
    keep(archive, words, first, 0.0, WHOLE_MAX + 1)
    keep(archive, words, payload(0, 2, cpu="9.0"), 10.0, WHOLE_MAX + 1)
    assert last_words.whole(words) == wire.decode(first)
    third = payload(0, 3, cpu="9.0")
    keep(archive, words, third, REPACK_SECONDS + 1.0, WHOLE_MAX + 1)
    assert last_words.whole(words) == wire.decode(third)
    fourth = payload(0, 4, ContainerState.CRASH_LOOP)
    keep(archive, words, fourth, REPACK_SECONDS + 2.0, WHOLE_MAX + 1)
    assert last_words.whole(words) == wire.decode(fourth)


def test_packed_words_are_a_fraction() -> None:
    """Packed by what another of the same deployment said; each can be read for itself, whatever it was packed by."""
    archive = Archive()
    everybody = [Words() for _ in range(50)]
    for n, words in enumerate(everybody):
        keep(archive, words, payload(n), 0.0, WHOLE_MAX + 1)
    assert all(last_words.whole(words) == wire.decode(payload(n)) for n, words in enumerate(everybody))
    assert sum(len(words.whole) for words in everybody) < 0.4 * sum(len(payload(n)) for n in range(50))


def test_a_flood_of_different_things_said_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept to be shared, and what others are packed by, is forgotten beyond a limit; nothing else is lost."""
    monkeypatch.setattr(last_words, "SHARED_MAX", 10)
    monkeypatch.setattr(last_words, "PATTERNS_MAX", 10)
    archive = Archive()
    everybody = [Words() for _ in range(40)]
    for n, words in enumerate(everybody):
        keep(archive, words, payload(n, deployment=f"d{n}"), 0.0, WHOLE_MAX + 1)
    assert sum(1 for _ in _kept(archive)) <= 20
    for n, words in enumerate(everybody):
        assert last_words.whole(words) == wire.decode(payload(n, deployment=f"d{n}"))
        assert words.glance is not None
        assert words.glance.deployment == f"d{n}"


def _kept(archive: Archive) -> Iterator[object]:
    yield from archive._said
    yield from archive._patterns
