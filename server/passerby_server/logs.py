"""Log lines with fields: `key=value` for people, or one JSON object a line for programs.

Lines carry methods, codes, times and ids; those written within a call carry its `request_id`, and the one about it who
called. They never carry payloads, names of people, cameras or galleries.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from passerby_server.telemetry.calls import current

FIELDS = "fields"


def event(log: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Logs `message` with `fields`."""
    log.log(level, message, extra={FIELDS: fields})


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        content = {"time": _time(record), "level": record.levelname, "logger": record.name}
        content |= {"message": record.getMessage()}
        content |= {key: str(value) for key, value in _fields(record).items()}
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def configure(level: str, style: str) -> None:
    """Sends all log lines of the process to stderr; called once, by the command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The line's own fields, and the id of the call that it was written in."""
    call = current()
    return getattr(record, FIELDS, {}) | ({} if call is None else {"request_id": call.request_id})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
