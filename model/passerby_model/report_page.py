"""One self-contained HTML page: sections of text, tables and pictures, with nothing to fetch (no torch)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #8888; }
img { max-width: 100%; background: #fff; margin: .4rem 0; } figure { margin: 0; display: inline-block; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; padding-right: 2rem; }
th, td { border-bottom: 1px solid #8884; vertical-align: top; } pre { overflow-x: auto; padding: .6rem; background: #8881; }
nav a { margin-right: 1rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what it shows in a few words, for those who do not see it."""

    file: Path
    alt: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; any part may be missing.

    text: a paragraph. table: rows of a name and a value. pictures: shown in a row that wraps. code: as it is.
    """

    title: str
    text: str = ""
    table: Sequence[tuple[str, str]] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a page with every picture inside it; gives back `path`, whose folder is made."""
    links = "".join(f'<a href="#s{number}">{escape(s.title)}</a>' for number, s in enumerate(sections))
    body = "\n".join(_section(number, section) for number, section in enumerate(sections))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table:
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in section.table
        )
        parts.append(f"<table>{rows}</table>")
    parts += [_picture(picture) for picture in section.pictures]
    if section.code:
        parts.append(f"<pre>{escape(section.code)}</pre>")
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.file.read_bytes()).decode("ascii")
    return f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}"></figure>'
