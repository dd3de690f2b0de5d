# Made of _async/__init__.py by clients/unasync.py: edit that one.
"""The synchronous client."""
