"""Clouds behind one port (`cloud.py`): create, observe, fence, attach."""
