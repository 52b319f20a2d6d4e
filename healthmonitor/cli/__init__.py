"""The operator's command, `resurgam`."""
