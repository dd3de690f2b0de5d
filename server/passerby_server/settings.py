"""The server's settings as people read them: what there is, what counts at the moment, and where that comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from passerby.errors import FailedPreconditionError
from passerby_model.bundle import MANIFEST_NAME
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from passerby_server.config import ENVIRONMENT_PREFIX, ServerConfig, layers, load_config

UNITS: Mapping[str, str] = {
    "bytes": "bytes",
    "days": "days",
    "frames": "frames",
    "ms": "milliseconds",
    "pixels": "pixels",
    "seconds": "seconds",
    "snippets": "snippets",
    "threads": "threads",
}
"""By the last word of a setting's name."""
_FILES = frozenset({"tls.certificate", "tls.key", "tls.client_ca", "access.file"})
_FOLDERS = frozenset({"bundle", "data", "audit.folder", "cache.folder"})
"""Those besides the bundle are made when missing."""
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `default` is a plain value, None where there is none; `required` has no default at all."""

    key: str
    default: Any
    required: bool
    unit: str
    allowed: str
    description: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "__")


@dataclass(frozen=True, slots=True)
class Given:
    """A setting and its value; `source` is flag, environment, file or default, or `missing` for a required one."""

    setting: Setting
    value: Any
    source: str


def settings(model: type[BaseModel] = ServerConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the sections."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
            continue
        yield Setting(
            key=prefix + name,
            default=None if field.is_required() else plain(field.default),
            required=field.is_required(),
            unit=UNITS.get(name.rpartition("_")[2], ""),
            allowed=_allowed(field),
            description=field.description or "",
        )


def given(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> list[Given]:
    """What each setting is, and where from. A missing `bundle` is shown as such; otherwise raises as `load_config`."""
    sources = layers(flags, environment=environment, file=file)
    bundled = any("bundle" in source for source in sources.values())
    config = load_config(flags if bundled else {**flags, "bundle": "."}, environment=environment, file=file)
    found = []
    for setting in settings():
        source = next((name for name in reversed(sources) if _has(sources[name], setting.key)), "default")
        value = plain(_value(config, setting.key))
        if setting.required and source == "default":
            value, source = None, "missing"
        found.append(Given(setting, value, source))
    return found


def check(file: Path) -> int:
    """How many settings a file has.

    Raises as `load_config` when something in it is wrong, FailedPreconditionError (FILES_MISSING) with each file that it
    names, that the server needs, and that cannot be read. Relative paths begin where the command runs, as those of the
    server do. Certificates and callers are looked into; what is in the bundle is for `passerby bundle verify` to find out.
    """
    found = [one for one in given({}, file=file) if one.source == "file"]
    if troubles := [f"{one.setting.key}: {trouble}" for one in found if (trouble := _trouble(one))]:
        raise FailedPreconditionError(
            f"{file}: the settings are valid, but a server could not start with them: {'; '.join(troubles)}",
            reason="FILES_MISSING",
        )
    _look_into({one.setting.key: Path(one.value) for one in found if one.setting.key in _FILES})
    return len(found)


def _look_into(files: Mapping[str, Path]) -> None:
    """Raises FailedPreconditionError for certificates or callers that the server would not start with."""
    from passerby_server.security import callers, tls

    if "tls.certificate" in files:
        tls.Certificates(files["tls.certificate"], files["tls.key"], files.get("tls.client_ca"))
    if "access.file" in files:
        callers.read(files["access.file"])


def _trouble(one: Given) -> str:
    """Why the server could not take the file or folder that a setting names; empty for all others."""
    key = one.setting.key
    if key not in _FOLDERS | _FILES or one.value is None:
        return ""
    path = Path(one.value)
    try:
        if key in _FILES:
            path.open("rb").close()
        elif key == "bundle":
            (path / MANIFEST_NAME).open("rb").close()
        elif path.exists() and not path.is_dir():
            return f"{path} is no folder"
    except FileNotFoundError:
        there = key == "bundle" and path.is_dir()
        return f"{path} holds no bundle (no {MANIFEST_NAME})" if there else f"{path} does not exist"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def plain(value: Any) -> Any:
    """A value as YAML and JSON hold it."""
    return str(value) if isinstance(value, Path) else value


def as_json(found: list[Given]) -> str:
    """A list of objects."""
    rows = [asdict(one.setting) | {"value": one.value, "source": one.source} for one in found]
    return json.dumps(rows, indent=2)


def as_yaml(found: list[Given]) -> str:
    """A file for `--config` that says the same, with what each setting means; what is a default stays a comment."""
    lines, section = [], ""
    set_here = {one.setting.key.rpartition(".")[0] for one in found if one.source not in ("default", "missing")}
    for one in found:
        before, _, name = one.setting.key.rpartition(".")
        if before != section:
            lines.append(f"\n{'' if before in set_here else '# '}{before}:")
            section = before
        indent = "  " if section else ""
        facts = "; ".join(filter(None, (one.setting.unit, one.setting.allowed, one.source)))
        comment = "# " if one.source in ("default", "missing") else ""
        lines.append(f"{indent}# {one.setting.description} [{facts}]")
        lines.append(f"{indent}{comment}{name}: {_scalar(one.value)}")
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """The tables of docs/configuration.md: a heading for each section, a row for each setting."""
    lines, section = [], None
    for setting in settings():
        before = setting.key.rpartition(".")[0]
        if before != section:
            about = "" if not before else (ServerConfig.model_fields[before].annotation.__doc__ or "")
            lines += ["", f"## `{before}`" if before else "## General", "", *([about.strip(), ""] if about else [])]
            lines += ["| setting | default | unit, range | what |", "|---|---|---|---|"]
            section = before
        default = "required" if setting.required else "none" if setting.default is None else _cell(setting.default)
        facts = ", ".join(filter(None, (setting.unit, setting.allowed)))
        text = setting.description.replace("|", "\\|")
        lines.append(f"| `{setting.key}` | {default} | {facts} | {text} |")
    return "\n".join(lines).strip() + "\n"


def _allowed(field: FieldInfo) -> str:
    if choices := get_args(field.annotation):
        named = [str(choice) for choice in choices if isinstance(choice, str)]
        if named:
            return ", ".join(named)
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return ", ".join(bounds)


def _has(nested: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.rpartition(".")
    return name in (nested.get(section, {}) if section else nested)


def _value(config: BaseModel, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _cell(value: Any) -> str:
    return "empty" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"
