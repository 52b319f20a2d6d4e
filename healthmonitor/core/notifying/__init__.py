"""From incidents to notifications, pure: where they go, what goes together, what is said, what is said again."""
