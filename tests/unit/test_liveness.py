"""One agent's lease and verdict, by table."""

from __future__ import annotations

import pytest

from healthmonitor.clouds.cloud import Power
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.liveness import (
    Because,
    Cause,
    Heard,
    Hearing,
    Inquiry,
    Life,
    answer,
    hear,
    judge,
    next_look,
)
from healthmonitor.core.policy import LivenessPolicy
from protocol.heartbeat import ExtensionGlance, Glance

POLICY = LivenessPolicy()


def beat(sent_at: float, sequence: int = 1, boot: str = "boot-a") -> Glance:
    return Glance(resurgam=ExtensionGlance(sequence=sequence, boot_id=boot, sent_at_seconds=sent_at))


def heard(*beats: tuple[float, float]) -> tuple[Life, list[Heard]]:
    """`beats`: (received, sent)."""
    life = Life()
    outcomes = [hear(life, beat(sent, n), received, POLICY) for n, (received, sent) in enumerate(beats)]
    return life, outcomes


@pytest.mark.parametrize(
    ("beats", "outcome", "alive_at"),
    [
        pytest.param([(100, 5), (105, 10)], Heard.RENEWED, 105, id="on-time"),
        pytest.param([(100, 5), (105.4, 10)], Heard.RENEWED, 105, id="jitter-renews-as-of-when-sent"),
        pytest.param([(100, 5), (119, 10)], Heard.LATE, 105, id="14-s-in-a-buffer-renews-what-it-deserves"),
        pytest.param([(114, 5), (105, 10)], Heard.RENEWED, 105, id="a-quicker-way-shows-the-first-was-late"),
        pytest.param([(100, 5), (101, 5)], Heard.REPLAYED, 100, id="the-same-again"),
        pytest.param([(100, 10), (101, 5)], Heard.REPLAYED, 100, id="an-older-one-after-a-younger"),
    ],
)
def test_a_heartbeat_renews_as_of_when_it_was_sent(
    beats: list[tuple[float, float]], outcome: Heard, alive_at: float
) -> None:
    """A heartbeat never renews more than its age, judged by the sender's own clock, allows."""
    life, outcomes = heard(*beats)
    assert outcomes[-1] is outcome
    assert life.alive_at == pytest.approx(alive_at)


def test_a_burst_out_of_a_buffer_renews_as_of_the_last_sent() -> None:
    """Three heartbeats that were held up and come at once renew as of when the youngest of them was sent."""
    life, outcomes = heard((100, 5), (119, 10), (119.01, 15), (119.02, 20))
    assert outcomes[1:] == [Heard.LATE, Heard.LATE, Heard.LATE]
    assert life.alive_at == pytest.approx(115)


def test_an_agent_that_was_restarted_is_heard() -> None:
    """A new process of the agent begins its sequence anew in the same boot; order is by the boot's own clock."""
    life = Life()
    hear(life, beat(1000, 900), 100, POLICY)
    assert hear(life, beat(1005, 1), 105, POLICY) is Heard.RENEWED
    assert life.alive_at == pytest.approx(105)


def test_a_former_boot_renews_nothing_unless_an_answer_says_that_it_is_the_present_one() -> None:
    """What an earlier boot sent comes too late; only an answer, fresh by construction, can bring a boot back."""
    life = Life()
    hear(life, beat(500, boot="boot-a"), 100, POLICY)
    hear(life, beat(3, boot="boot-b"), 110, POLICY)
    assert hear(life, beat(505, boot="boot-a"), 111, POLICY) is Heard.OLD_BOOT
    assert life.alive_at == 110
    answer(life, 112, "boot-a", 507.0, POLICY)
    assert hear(life, beat(508, boot="boot-a"), 113, POLICY) is Heard.RENEWED


def test_a_thawed_vm_is_on_time_again_after_one_answer() -> None:
    """A VM whose clock stood still while it was frozen looks late until it has answered once."""
    life, _ = heard((100, 5), (105, 10))
    assert hear(life, beat(11), 165, POLICY) is Heard.LATE  # frozen for a minute
    assert life.alive_at == pytest.approx(106)
    answer(life, 165.0, "boot-a", 11.1, POLICY)
    assert life.alive_at == 165.0
    assert hear(life, beat(16, 12), 170, POLICY) is Heard.RENEWED
    assert life.alive_at == pytest.approx(169.9)


def test_an_answer_never_renews_beyond_the_question() -> None:
    """The answer was given after the question was put; more than that nobody knows."""
    life = Life()
    answer(life, 50.0, "boot-a", 7.0, POLICY)
    hear(life, beat(7.2), 58, POLICY)
    assert life.alive_at <= 50.2 + 1e-9


def test_drifting_clocks_do_not_look_late() -> None:
    """The quickest way is forgotten after two windows, so that 0.01 % of drift in a day makes nobody late."""
    life = Life()
    outcomes = {hear(life, beat(n * 5 * 0.9999, n), 100 + n * 5, POLICY) for n in range(1, 17_280)}
    assert outcomes == {Heard.RENEWED}


def test_a_real_bosh_agent_counts_as_sent_when_received() -> None:
    """A heartbeat without our keys renews as of its reception."""
    life = Life()
    assert hear(life, Glance(job_state="running"), 42.0, POLICY) is Heard.RENEWED
    assert life.alive_at == 42.0


T = 100.0
"""When the agent was last alive, in the table below; it is under inquiry since T + 8."""


@pytest.mark.parametrize(
    ("now", "asked_in_vain_at", "power", "hearing", "verdict", "because"),
    [
        pytest.param(108.5, None, None, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="just-suspect"),
        pytest.param(114, 109, Power.RUNNING, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="lease-not-over"),
        pytest.param(115.1, 109, Power.RUNNING, Hearing(0), Verdict.MISSING, Because.LEASE_AND_NO_ANSWER, id="hung"),
        pytest.param(115.1, 109, Power.PAUSED, Hearing(0), Verdict.MISSING, Because.LEASE_AND_NO_ANSWER, id="paused"),
        pytest.param(115.1, 109, None, Hearing(0), Verdict.MISSING, Because.LEASE_AND_NO_ANSWER, id="cloud-is-dumb"),
        pytest.param(115.1, None, None, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="never-without-asking"),
        pytest.param(115.1, 107, None, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="asked-before-the-cause"),
        pytest.param(109, 108.5, Power.OFF, Hearing(0), Verdict.MISSING, Because.CLOUD_AND_NO_ANSWER, id="off"),
        pytest.param(109, 108.5, Power.GONE, Hearing(0), Verdict.MISSING, Because.CLOUD_AND_NO_ANSWER, id="gone"),
        pytest.param(109, None, Power.OFF, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="off-but-not-asked"),
        pytest.param(109, 108.5, Power.UNKNOWN, Hearing(0), Verdict.SUSPECT, Because.UNDER_INQUIRY, id="unknown"),
        pytest.param(116, 109, Power.OFF, Hearing(0, "deaf"), Verdict.CANNOT_TELL, Because.DEAF, id="deaf-even-if-off"),
        pytest.param(116, 109, None, Hearing(0, "deaf"), Verdict.CANNOT_TELL, Because.DEAF, id="deaf"),
        pytest.param(116, 109, None, Hearing(0, "", "many"), Verdict.CANNOT_TELL, Because.MASS, id="mass-silence"),
        pytest.param(116, 109, Power.GONE, Hearing(0, "", "many"), Verdict.CANNOT_TELL, Because.MASS, id="mass-gone"),
        pytest.param(
            116, 109, Power.OFF, Hearing(0, "", "many"), Verdict.MISSING, Because.CLOUD_AND_NO_ANSWER, id="mass-but-off"
        ),
        pytest.param(116, 115, None, Hearing(112), Verdict.CANNOT_TELL, Because.LAGGED, id="silence-before-a-lag"),
        pytest.param(128, 126, None, Hearing(112), Verdict.MISSING, Because.LEASE_AND_NO_ANSWER, id="lease-after-lag"),
    ],
)
def test_the_verdict(
    now: float,
    asked_in_vain_at: float | None,
    power: Power | None,
    hearing: Hearing,
    verdict: Verdict,
    because: Because,
) -> None:
    """The verdict follows from silence, an unanswered question, the cloud's word and the monitor's own hearing."""
    life = Life()
    hear(life, beat(5.0), T, POLICY)
    inquiry = Inquiry(Cause.SILENT, T + 8)
    if asked_in_vain_at is not None:
        inquiry.unanswered_at = asked_in_vain_at
    if power is not None:
        inquiry.power, inquiry.power_at, inquiry.power_evidence = power, T + 8, "test"
    judged = judge(life, inquiry, expected_at=0.0, hearing=hearing, now=now, policy=POLICY)
    assert (judged.verdict, judged.because) == (verdict, because)


def test_a_late_heartbeat_alone_makes_nobody_suspect() -> None:
    """Being asked because of a late heartbeat is not suspicion."""
    life, _ = heard((100, 5))
    judged = judge(life, Inquiry(Cause.LATE, 101), 0.0, Hearing(0), 102, POLICY)
    assert judged.verdict is Verdict.ALIVE


def test_it_is_looked_at_when_its_lease_ends_also_after_a_gap_in_hearing() -> None:
    """Its lease ends before the monitor has heard for one without a gap: from then on nothing can be told, until both
    are over."""
    life, inquiry = Life(alive_at=100.0), Inquiry(Cause.SILENT, 108.0, asking=True, observing=True)
    hearing, lease = Hearing(102.5), POLICY.lease_seconds
    assert next_look(life, inquiry, 0.0, hearing, 109.0, POLICY) == 100.0 + lease
    assert next_look(life, inquiry, 0.0, hearing, 100.5 + lease, POLICY) == 102.5 + lease
