# Made of _async/__init__.py by clients/generate.py: edit that one.
"""The synchronous client."""
