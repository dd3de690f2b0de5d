"""Every command line and flag that a page names is one that the program takes. Pages: the READMEs and docs/*.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from passerby_client.cli import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "bundles/README.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = ROOT / "benchmarks"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Flags of other programs that a sentence may name.
FOREIGN_FLAGS = {"--constraint", "--gpus", "--target"}  # pip, docker


def _operator(token: str) -> bool:
    return set(token) <= set("();<>|&")


def _command_lines(page: Path) -> Iterator[list[str]]:
    """Every simple command of the page's sh blocks, as words: pipes, lists and assignments before it taken apart."""
    blocks = [text for language, text in FENCE.findall(page.read_text()) if language in ("sh", "bash", "console")]
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if "passerby" not in line and "benchmarks/" not in line:
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if not _operator(token):
                words.append(token)
                continue
            while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("do", "then", "time")):
                words.pop(0)
            yield words
            words = []


def _cases() -> list[Any]:
    return [
        pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}")
        for page in PAGES
        for words in _command_lines(page)
        if "passerby" in words[:1]
    ]


def _subcommand(command: Any, name: str) -> Any:
    """The command `name` of a group, loaded; None when there is none."""
    found = command.commands.get(name)
    return found._load() if hasattr(found, "_load") else found


def _parse(command: Any, name: str, words: list[str]) -> None:
    """Parses a command line as the program would, without running anything; raises its usage error."""
    with command.make_context(name, list(words)) as context:
        group = context.command
        if hasattr(group, "commands"):
            found, subcommand, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            _parse(subcommand, f"{name} {found}", rest)


def _flags(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


@cache
def _all_flags() -> frozenset[str]:
    flags, waiting = {"--help"}, [get_command(app)]
    while waiting:
        command: Any = waiting.pop()
        flags |= _flags(command)
        waiting += [_subcommand(command, name) for name in getattr(command, "commands", {})]
    return frozenset(flags)


def _script_flags(script: Path) -> set[str]:
    return set(re.findall(r"add_argument\(\s*\"(--[a-z0-9-]+)\"", script.read_text())) | {"--help"}


def _code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("words", _cases())
def test_every_command_line_parses(words: list[str]) -> None:
    # Raises for an unknown command or flag, a missing argument, a value of the wrong kind.
    _parse(get_command(app), "passerby", words[1:])


def test_a_wrong_command_line_does_not_parse() -> None:
    wrong = {
        "galery list": "No such command",
        "gallery lst": "No such command",
        "gallery list --jsn": "No such option",
        "gallery show": "Missing",
        "street out --seed many": "valid integer",
    }
    for line, problem in wrong.items():
        with pytest.raises(Exception, match=problem):
            _parse(get_command(app), "passerby", line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_benchmark_that_is_run_exists_with_its_flags(page: Path) -> None:
    for words in _command_lines(page):
        if len(words) > 1 and words[1].startswith("benchmarks/"):
            assert {word for word in words if word.startswith("--")} <= _script_flags(ROOT / words[1]), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_in_sentences_exist(page: Path) -> None:
    known = _all_flags() | FOREIGN_FLAGS
    known = known.union(*map(_script_flags, BENCHMARKS.glob("*.py")))
    for span in _code_spans(page):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)) <= known, f"{page.name}: `{span}`"
        if named := re.match(r"passerby ([a-z]+)(?: ([a-z]+)(?= |$))?", span):
            command = _subcommand(get_command(app), named[1])
            assert command is not None, f"{page.name}: `{span}`"
            assert not named[2] or not hasattr(command, "commands") or named[2] in command.commands, span


def test_there_is_something_to_check() -> None:
    assert len(_cases()) > 20
    assert len(_all_flags()) > 50
