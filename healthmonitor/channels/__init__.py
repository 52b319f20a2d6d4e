"""Channels behind one port (`channel.py`): where notifications of incidents go."""
