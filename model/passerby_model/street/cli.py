"""The command `passerby street`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def street(
    out: Annotated[Path, typer.Argument(help="New or empty folder for <identity>/<camera>/<tracklet>/<frame>.jpg.")],
    identities: Annotated[int, typer.Option(help="Number of people.")] = 20,
    cameras: Annotated[int, typer.Option(help="Number of cameras; everybody passes each.")] = 3,
    frames: Annotated[str, typer.Option(help="Frames of a tracklet: a number, or MIN-MAX.")] = "16",
    seed: Annotated[int, typer.Option(help="Another seed gives other people and cameras.")] = 0,
    first_identity: Annotated[int, typer.Option(help="Number of the first person.")] = 0,
    visits: Annotated[int, typer.Option(help="Tracklets of each person in each camera.")] = 1,
    every: Annotated[int, typer.Option(help="Keep every n-th frame of a camera: backgrounds differ more.")] = 1,
    scenes: Annotated[int, typer.Option(help="Put each tracklet before one of so many scenes; 0: the camera's.")] = 0,
    masks: Annotated[
        Path | None,
        typer.Option(help="Also write below this folder what is where: person, backpack, handbag, hat, umbrella."),
    ] = None,
) -> None:
    """Write a synthetic camera gallery: drawn people who walk past cameras."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from passerby_model.street.config import StreetConfig
    from passerby_model.street.writer import write

    config = StreetConfig(
        identities=identities,
        cameras=cameras,
        frames=parse_frames(frames),
        seed=seed,
        first_identity=first_identity,
        visits=visits,
        every=every,
        scenes=scenes,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("tracklets", total=config.tracklet_count)
        record = write(
            config,
            out,
            masks=masks if masks is not None else False,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    count = sum(tracklet["frames"] for tracklet in record["tracklets"])
    typer.echo(f"{config.tracklet_count} tracklets, {count} frames, in {out}")
    if masks is not None:
        typer.echo(f"masks in {masks}")


def parse_frames(text: str) -> int | tuple[int, int]:
    """The number in "16", or the range in "8-24". Raises InvalidArgumentError for anything else."""
    from passerby.errors import InvalidArgumentError

    parts = text.split("-")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise InvalidArgumentError(f"frames is {text!r}; give a number such as 16, or a range such as 8-24")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
