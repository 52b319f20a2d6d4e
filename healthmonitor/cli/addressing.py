"""Names as people type them → the instance or deployment that is meant.

`shop/db/0` in full; `db/0` and `db` when only one instance is called that. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from healthmonitor.cli.failures import CliFailure, ExitCode


def find_instance(text: str, known: Sequence[str]) -> str:
    """The one instance that `text` names; CliFailure(USAGE) when none or several are."""
    matches = instances_matching(text, known)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise CliFailure(
            f"{text!r} may be {', '.join(matches[:8])}{' …' if len(matches) > 8 else ''}",
            ExitCode.USAGE,
            "write the name in full, like " + matches[0],
        )
    raise CliFailure(f"there is no instance {text!r}", ExitCode.USAGE, _nearest(text, known))


def instances_matching(text: str, known: Sequence[str]) -> list[str]:
    """Those whose name is `text`, or ends or begins with its parts, the closest reading first."""
    wanted = text.strip("/").split("/")
    exact = [name for name in known if name.split("/") == wanted]
    if exact:
        return exact
    ending = [name for name in known if name.split("/")[-len(wanted) :] == wanted]
    if ending:
        return ending
    in_group = [name for name in known if name.split("/")[:-1][-len(wanted) :] == wanted]
    return in_group or [name for name in known if name.split("/")[: len(wanted)] == wanted]


def find_deployment(text: str, known: Sequence[str]) -> str:
    if text in known:
        return text
    raise CliFailure(f"there is no deployment {text!r}", ExitCode.USAGE, _nearest(text, known))


def _nearest(text: str, known: Sequence[str]) -> str:
    if not known:
        return "nothing is deployed yet: `resurgam deploy FILE`"
    near = difflib.get_close_matches(text, [*known, *(name.split("/", 1)[-1] for name in known)], n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`resurgam status` lists what there is"
