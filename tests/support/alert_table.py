"""The table of docs/alerts.md: every alert the system can send, made from the code.

`python -m tests.support.alert_table` prints it.
"""

from __future__ import annotations

from healthmonitor.core.deviations import KINDS
from healthmonitor.core.policy import Policy
from healthmonitor.core.units import duration_text

HEAD = ("| kind | severity | after | what it means | what to type next |", "|---|---|---|---|---|")


def rows() -> list[str]:
    policy = Policy()
    return [
        f"| `{name}` | {kind.severity.value} {kind.severity.name.lower()} | {_after(kind.after(policy))} |"
        f" {kind.meaning} | {_typed(kind.next_step)} |"
        for name, kind in sorted(KINDS.items(), key=lambda item: (item[1].severity.value, item[0]))
    ]


def _after(seconds: float) -> str:
    return duration_text(seconds) if seconds else "at once"


def _typed(next_step: str) -> str:
    words = next_step.replace("{instance}", "INSTANCE").replace("{subject}", "SUBJECT").replace("{name}", "CONTAINER")
    return f"`{words}`" if words.startswith(("resurgam", "bosh")) else words


if __name__ == "__main__":
    print("\n".join((*HEAD, *rows())))
