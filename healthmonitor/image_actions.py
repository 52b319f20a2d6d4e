"""What people may ask of the image store: push, list, delete, prune, and what is needed.

Laws: only the monitor that leads changes it; each change is in the timeline with who asked and why. What a deployment
or an instance names is deleted only by force and with a reason.

Does not know: HTTP, how blobs are kept (image_store.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from healthmonitor.core import image_index
from healthmonitor.core.image_index import BadImage, Index, NeededImage, Removal
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.image_store import ImageStore
from healthmonitor.journal import Journal
from healthmonitor.operator_actions import Answer, Leader, NotFound, NotLeading, Person
from protocol.ids import CloudName
from protocol.images import IMAGE_ID, familiar, normalised

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PushedImage:
    config: str
    layers: Sequence[str]
    references: Sequence[str]


class ImageActions:
    def __init__(self, store: ImageStore, journal: Journal, leader: Leader, unix_time: Callable[[], float]) -> None:
        self._store = store
        self._journal = journal
        self._leader = leader
        self._unix_time = unix_time

    def needed(self, cloud: CloudName | None = None) -> tuple[NeededImage, ...]:
        """Every image that deployments and instances name (of one cloud): what a spare VM there should have."""
        deployments = self._journal.deployments().values()
        return image_index.needed(deployments, self._journal.instances().values(), cloud or "")

    async def listed(self) -> dict[str, Any]:
        index = await self._store.index()
        wanted = self.needed()
        figures = self._store.figures
        return {
            "images": [
                {
                    "id": image.image_id,
                    "names": list(index.names_of(image.image_id)),
                    "size_bytes": image.size_bytes,
                    "layers": len(image.layers),
                    "platform": f"{image.os}/{image.architecture}",
                    "pushed_at": image.pushed_at,
                    "pushed_by": image.pushed_by,
                    "used_by": list(image_index.users_of(index, image.image_id, wanted)),
                }
                for image in sorted(index.images.values(), key=lambda image: -image.pushed_at)
            ],
            "used_bytes": await self._store.used_bytes(),
            "limit_bytes": figures.limit_bytes,
            "needed": [
                {
                    "image": each.reference,
                    "used_by": list(each.users),
                    "in_store": index.find(each.reference) is not None,
                }
                for each in wanted
            ],
        }

    async def missing(self, digests: Sequence[str]) -> tuple[str, ...]:
        self._check_leading()
        return await self._store.missing(digests)

    async def receive(self, digest: str, size_bytes: int, content: AsyncIterable[bytes]) -> bool:
        self._check_leading()
        if not IMAGE_ID.fullmatch(digest):
            raise BadImage(f"{digest[:80]!r} is no digest; expected sha256: and 64 hexadecimal digits")
        return await self._store.receive(digest, size_bytes, content)

    async def push(self, pushed: PushedImage, person: Person) -> Answer:
        self._check_leading()
        image = await self._store.commit(
            pushed.config, pushed.layers, pushed.references, self._unix_time(), str(person)
        )
        names = ", ".join(familiar(normalised(each)) for each in pushed.references) or image.image_id[:19]
        text = f"{names} is in the store: {len(image.layers)} layers, {image.size_bytes // MIB} MiB"
        await self._note("image.pushed", names, text, person, "")
        return Answer(text, "resurgam image list", {"image_id": image.image_id, "size_bytes": image.size_bytes})

    async def delete(self, text: str, person: Person, force: bool, because: str) -> Answer:
        """By name: that name, and the image when it was its last. By id: the image with all its names."""
        self._check_leading()
        if force and not because.strip():
            raise NotPossible("force without a reason", 'add --because "why it may go"')

        def choose(index: Index, arriving: frozenset[str]) -> Removal:
            image = index.find(text)
            if image is None:
                raise NotFound(f"there is no image {text[:200]!r} in the store (or several begin so)")
            users = image_index.users_of(index, image.image_id, self.needed())
            if users and not force:
                raise NotPossible(
                    f"{text} is used by {_some(users)}", 'add --force and --because "why", or deploy without it first'
                )
            only = normalised(text) if index.references.get(normalised(text)) == image.image_id else ""
            return image_index.removal_of(index, image.image_id, only)

        removal, freed = await self._store.remove(choose)
        answer = f"{text} is deleted: {_said(removal)}, {freed // MIB} MiB"
        await self._note("image.deleted", text, answer, person, because)
        return Answer(answer, "", {"freed_bytes": freed})

    async def prune(self, older_than_seconds: float, dry_run: bool, person: Person, because: str) -> Answer:
        self._check_leading()
        wanted, now = self.needed(), self._unix_time()

        def choose(index: Index, arriving: frozenset[str]) -> Removal:
            return image_index.prunable(index, wanted, now, older_than_seconds, arriving)

        if dry_run:
            index = await self._store.index()
            removal = choose(index, frozenset())
            freed = sum(index.blobs[digest] for digest in removal.blobs)
        else:
            removal, freed = await self._store.remove(choose)
        facts = {"images": list(removal.images), "references": [familiar(each) for each in removal.references]}
        facts |= {"freed_bytes": freed}  # type: ignore[dict-item]
        if dry_run:
            return Answer(f"would go: {_said(removal)}, {freed // MIB} MiB", "", facts)
        text = f"pruned: {_said(removal)}, {freed // MIB} MiB"
        if not removal.is_empty:
            await self._note("image.pruned", "images", text, person, because)
        return Answer(text, "", facts)

    async def _note(self, kind: str, subject: str, text: str, person: Person, because: str) -> None:
        fields = {"by": str(person), **({"because": because} if because else {})}
        await self._journal.record(kind, subject, f"{text}; by {person}" + (f": {because}" if because else ""), fields)

    def _check_leading(self) -> None:
        if not self._leader.is_leader():
            raise NotLeading(self._leader.leader_name(), self._leader.leader_address())


def _said(removal: Removal) -> str:
    parts = (("image", len(removal.images)), ("name", len(removal.references)), ("blob", len(removal.blobs)))
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in parts)


def _some(users: Sequence[str]) -> str:
    return ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
