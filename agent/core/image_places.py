"""Where an image is looked for, in which order: `pull_policy` as a table (docs/images.md shows it).

Laws: a pinned image is looked for by what it is, never by what a name means today; when it is here already nobody is
asked. `never` asks nobody, `store` never asks a registry. The first place that has it ends the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from protocol.spec import ImagePin, PullPolicy


class Place(Enum):
    HERE = "this VM"
    REGISTRY = "its registry"
    STORE = "the image store"


ORDER: Mapping[PullPolicy, tuple[Place, ...]] = {
    PullPolicy.MISSING: (Place.HERE, Place.REGISTRY, Place.STORE),
    PullPolicy.ALWAYS: (Place.REGISTRY, Place.STORE, Place.HERE),
    PullPolicy.NEVER: (Place.HERE,),
    PullPolicy.STORE: (Place.HERE, Place.STORE),
}


def places(policy: PullPolicy, pin: ImagePin | None = None) -> tuple[Place, ...]:
    if pin is None:
        return ORDER[policy]
    asked = [place for place in ORDER[policy] if place is not Place.HERE]
    if not pin.digest:  # no registry ever had it
        asked = [place for place in asked if place is not Place.REGISTRY]
    return (Place.HERE, *asked)
