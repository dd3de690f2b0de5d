"""`passerby bundle diff`, to be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from passerby_client.commands.common import new_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from .bundle_diff import BundleDiff, WeightDiff

_TENSORS = 10  # the most changed ones that are shown; --json has all
_LONGEST = 72  # characters of a value


def print_diff(found: BundleDiff) -> None:
    """Writes what changed to standard output."""
    typer.echo(f"A  {found.a}\nB  {found.b}")
    if found.same_fingerprint:
        typer.echo("one fingerprint: descriptors of both may be compared")
    else:
        typer.echo("two fingerprints: descriptors of one are never compared with those of the other")
    for section, changes in itertools.groupby(found.changes, key=lambda change: change.section):
        table = new_table("", "A", "B", title=section)
        for change in changes:
            table.add_row(change.key, _text(change.a), _text(change.b))
        print_table(table)
    if not found.changes:
        typer.echo("bundle.json: no difference")
    for line in _weights(found.weights):
        typer.echo(line)
    for part in (_scopes(found.weights), _tensors(found.weights)):
        if part is not None:
            print_table(part)
    typer.echo(_descriptors(found))


def _weights(weights: WeightDiff) -> Iterator[str]:
    yield f"weights: {weights.a} and {weights.b}, decoded to float32"
    counts = f"{weights.equal} tensors equal, {len(weights.changed)} changed"
    yield f"  {counts}, {len(weights.only_a)} in A only, {len(weights.only_b)} in B only"
    for side, names in (("A", weights.only_a), ("B", weights.only_b)):
        if names:
            yield f"  in {side} only: {', '.join(names[:_TENSORS])}{' ...' if names[_TENSORS:] else ''}"


def _scopes(weights: WeightDiff) -> Table | None:
    shown = [scope for scope in weights.scopes if scope.changed or scope.only_a or scope.only_b]
    if not shown:
        return None
    numbers = ("equal", "changed", "A only", "B only", "relative L2")
    table = new_table("module", *numbers, right=numbers, title="weights by module")
    for scope in shown:
        counts = map(str, (scope.equal, scope.changed, scope.only_a, scope.only_b))
        table.add_row(scope.scope, *counts, f"{scope.relative_l2:.2e}")
    return table


def _tensors(weights: WeightDiff) -> Table | None:
    if not weights.changed:
        return None
    table = new_table("tensor", "shape", "relative L2", right=("relative L2",), title="changed most")
    for tensor in weights.changed[:_TENSORS]:
        shape = _shape(tensor.shape_a)
        if tensor.relative_l2 is None:
            table.add_row(tensor.name, f"{shape} and {_shape(tensor.shape_b)}", "")
        else:
            table.add_row(tensor.name, shape, f"{tensor.relative_l2:.2e}")
    return table


def _descriptors(found: BundleDiff) -> str:
    known = found.descriptors
    if known is None:
        return f"descriptors: not compared: {found.not_compared}"
    return (
        f"descriptors of {known.snippets} snippets ({', '.join(known.frames)}), {known.a} and {known.b}: "
        f"cosine >= {known.least_cosine:.7f}, mean {known.mean_cosine:.7f}; relative L2 <= {known.relative_l2:.1e}"
    )


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.7g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
