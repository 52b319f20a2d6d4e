"""Who has taken a notification already, where one channel has several receivers.

Law: a receiver that took it is not given it again while others are still tried; after a restart it may be, once. The
memory has a limit; what falls out of it costs a duplicate, never a loss.
"""

from __future__ import annotations

NOTIFICATIONS_MAX = 1000


class Taken:
    def __init__(self) -> None:
        self._by_notification: dict[str, set[str]] = {}

    def by(self, notification_id: str) -> frozenset[str]:
        return frozenset(self._by_notification.get(notification_id, ()))

    def add(self, notification_id: str, receivers: set[str]) -> None:
        while len(self._by_notification) >= NOTIFICATIONS_MAX and notification_id not in self._by_notification:
            del self._by_notification[next(iter(self._by_notification))]
        self._by_notification.setdefault(notification_id, set()).update(receivers)

    def forget(self, notification_id: str) -> None:
        self._by_notification.pop(notification_id, None)
