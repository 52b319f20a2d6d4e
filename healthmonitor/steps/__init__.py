"""How each step of an operation is taken. Which comes next is decided in `core/operation.py`."""
