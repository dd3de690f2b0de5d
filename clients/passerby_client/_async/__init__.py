"""The source of both clients: `_sync` is made of this package by `clients/unasync.py`."""
