"""Make the synchronous client of the asynchronous one; with --check, fail on a difference.

`passerby_client/_async` is written by hand; `passerby_client/_sync` is the same text without `async` and `await`, and
with the second of each pair of names in `_concurrency` and `_channel`. Needs the `dev` extra (ruff).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "passerby_client"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"
NOTICE = "# Made of _async/{name} by clients/unasync.py: edit that one.\n"

RULES: tuple[tuple[str, str], ...] = (
    (r"\(await (self\._\w+\(.*\))\)\.", r"\1."),  # (await f()).x
    (r"\bawait ", ""),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"Awaitable\[([\w.]+)\]", r"\1"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\bASYNC_", ""),
    (r"\basync_(?=[a-z])", ""),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\banext\(", "next("),
    (r"\baiter\(", "iter("),
    (r"passerby_client\._async\b", "passerby_client._sync"),
    (r"in an `with`", "in a `with`"),
    (r"Tasks of one event loop may share it", "Threads may share it"),
    (r"The asynchronous client", "The synchronous client"),
)


def synchronous(text: str, name: str) -> str:
    """The source of the module `name` without coroutines, not yet formatted."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return NOTICE.format(name=name) + text


def generate() -> dict[str, str]:
    """Text by file name of all modules of `_sync`."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("*.py"))}
    texts["__init__.py"] = '"""The synchronous client."""\n'
    return {name: _formatted(synchronous(text, name), TARGET / name) for name, text in texts.items()}


def differences() -> list[str]:
    """Names of the modules of `_sync` that differ from what `generate` gives."""
    fresh = generate()
    names = {*fresh, *(path.name for path in TARGET.glob("*.py"))}
    return sorted(name for name in names if fresh.get(name) != _read(TARGET / name))


def _formatted(text: str, path: Path) -> str:
    """`text` as ruff would leave it at `path`: imports sorted anew and unused ones removed, since names have changed."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    for command in (["check", "--select", "I,F401,UP028", "--fix-only", "--unsafe-fixes"], ["format"]):
        words = [ruff, *command, "--quiet", "--stdin-filename", str(path), "-"]
        text = subprocess.run(words, input=text, capture_output=True, text=True, check=True, cwd=PACKAGE).stdout
    return text


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if wrong := differences():
            raise SystemExit(f"run clients/unasync.py: {', '.join(wrong)} in {TARGET.name} differ from {SOURCE.name}")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        for name, text in generate().items():
            (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
