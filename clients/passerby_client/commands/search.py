"""`passerby search`: a query's frames or a stored tracklet -> ranked hits as a table, JSON and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from passerby_client.commands.common import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    AsJson,
    CaFile,
    Server,
    Timeout,
    connected,
    last_part,
    local_time,
    new_table,
    parse_labels,
    parse_span,
    parse_time,
    parse_travel,
    plain,
    print_json,
    print_table,
    time_span,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passerby.v1.resources_pb2 import TrackletDescriptor
    from passerby.v1.search_service_pb2 import RerankOptions, SearchHit, SearchTrackletsResponse
    from rich.table import Table

    from passerby_client._requests import SearchOptions

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def search(
    gallery: Annotated[str, typer.Option("--gallery", "-g", metavar="GALLERY", help="Id of the gallery.")],
    more_frames: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Further frames: --frames q/*.jpg works.")
    ] = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Query: images, or a folder of them, in order of their names."),
    ] = None,
    tracklet: Annotated[str | None, typer.Option(metavar="NAME", help="Query: a tracklet of the gallery.")] = None,
    descriptor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Query: a descriptor, from `tracklet show --descriptor`.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Search while the frames of the folder are being written.")
    ] = False,
    until_quiet: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --follow: end when no frame has come for so long.")
    ] = 5.0,
    top_k: Annotated[int, typer.Option("--top-k", "-k", metavar="N", help="Hits to show.")] = 10,
    camera: Annotated[
        list[str] | None, typer.Option(metavar="CAMERA", help="Only hits of this camera; may be repeated.")
    ] = None,
    exclude_camera: Annotated[
        list[str] | None, typer.Option(metavar="CAMERA", help="No hits of this camera; may be repeated.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Seen at or after (ISO 8601; local time without a zone).")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Seen before; local time without a zone.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only with this label; may be repeated.")
    ] = None,
    identity: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only hits of this identity; may be repeated.")
    ] = None,
    group: Annotated[bool, typer.Option("--group", help="One hit for each identity.")] = False,
    rerank: Annotated[bool, typer.Option("--rerank", help="Re-rank the best candidates (k-reciprocal).")] = False,
    rerank_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Re-rank with k1, k2, original_weight, shortlist_size or time_budget=0.5s; may be repeated.",
        ),
    ] = None,
    query_camera: Annotated[str, typer.Option(metavar="CAMERA", help="Camera of the query's frames.")] = "",
    exclude_query_camera: Annotated[
        bool, typer.Option("--exclude-query-camera", help="No hits of the query's own camera.")
    ] = False,
    travel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAMERA=MIN..MAX",
            help="Hits of this camera only if the way from or to the query took so long: c2=30s..5m; may be repeated.",
        ),
    ] = None,
    query_time: Annotated[
        str | None,
        typer.Option(
            metavar="START..END",
            help="When the query's frames were seen (ISO 8601; local time without a zone), for --travel.",
        ),
    ] = None,
    false_match_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Decide at this rate, where the model is calibrated: --false-match-rate 0.001"
        ),
    ] = None,
    max_frames: Annotated[
        int, typer.Option(metavar="N", min=0, help="Send at most N frames, evenly spaced; 0 sends all.")
    ] = 0,
    identity_of_query: Annotated[
        str, typer.Option(metavar="ID", help="Who the query is, where known: marks right and wrong hits.")
    ] = "",
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw query and hits.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw where the model looks, if it has masks.")] = False,
    server: Server = DEFAULT_SERVER,
    ca_file: CaFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Find where and when a person was seen."""
    paths = [*(frames or []), *(more_frames or [])]
    if bool(paths) + (tracklet is not None) + (descriptor is not None) != 1:
        raise typer.BadParameter(
            "give either frames, a tracklet or a descriptor", param_hint="'--frames' / '--tracklet' / '--descriptor'"
        )
    if picture is not None and descriptor is not None:
        raise typer.BadParameter("there is nothing to draw of a descriptor", param_hint="'--picture'")
    if picture is None and (overlay or identity_of_query):
        raise typer.BadParameter(
            "only show in a picture: add --picture FILE", param_hint="'--overlay' / '--identity-of-query'"
        )
    if follow and (len(paths) != 1 or paths[0].is_file() or max_frames):
        raise typer.BadParameter("follows all frames of one folder: --frames FOLDER", param_hint="'--follow'")
    if picture is not None:
        from passerby_client.commands._result_picture import check_writable

        check_writable(picture)
    name = _tracklet_name(gallery, tracklet) if tracklet is not None else None
    options: SearchOptions = {
        "top_k": top_k,
        "cameras": camera or (),
        "exclude_cameras": exclude_camera or (),
        "start_time": parse_time(after),
        "end_time": parse_time(before),
        "labels": parse_labels(label or []),
        "identities": identity or (),
        "group_by_identity": group,
        "rerank": _rerank(rerank, rerank_option or []),
        "query_camera": query_camera,
        "exclude_query_camera": exclude_query_camera,
        "query_time": parse_span(query_time),
        "travel_windows": parse_travel(travel or []),
        "false_match_rate": false_match_rate,
        "thumbnails": picture is not None,
    }
    files = [] if follow else _evenly(_images(paths), max_frames)
    with connected(server, ca_file, timeout, frames=files) as client:
        if follow:
            from passerby.errors import NotFoundError

            from passerby_client.commands import _following

            try:
                answer, files = _following.follow(client, gallery, lambda: _so_far(paths[0]), until_quiet, options)
            except NotFoundError:
                if paths[0].is_dir():
                    raise
                raise NotFoundError(
                    f"{paths[0]}: there is no such folder, nor came one in {until_quiet:g} s; --until-quiet waits longer"
                ) from None
        else:
            answer = client.search(
                gallery,
                frames=files if paths else None,
                tracklet=name,
                descriptor=_descriptor(descriptor),
                **options,
            )
        if picture is not None:
            from passerby_client.commands._result_picture import save_picture

            save_picture(
                picture,
                client,
                gallery,
                answer,
                frames=files,
                tracklet=name,
                identity=identity_of_query,
                camera=query_camera,
                overlay=overlay,
                options=options,
            )
    if as_json:
        print_json(_as_json(answer))
    else:
        print_table(
            _table(answer, grouped=group),
            _table(answer, grouped=group, brief=True),
            spare=("re-ranked", "more", "distance", "rank"),
        )
    if picture is not None:
        typer.echo(f"picture: {picture}", err=True)


def _tracklet_name(gallery: str, tracklet: str) -> str:
    from passerby.names import tracklet_name

    return tracklet if "/" in tracklet else tracklet_name(last_part(gallery), tracklet)


def _descriptor(path: Path | None) -> TrackletDescriptor | None:
    """A descriptor from a file of API JSON. Raises NotFoundError, InvalidArgumentError."""
    if path is None:
        return None
    from google.protobuf.json_format import Parse, ParseError
    from passerby.errors import InvalidArgumentError, NotFoundError
    from passerby.v1.resources_pb2 import TrackletDescriptor

    try:
        return Parse(path.read_bytes(), TrackletDescriptor())
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ParseError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path}: no descriptor; `passerby tracklet show --descriptor FILE` writes one ({error})"
        ) from error


def _rerank(wanted: bool, options: list[str]) -> bool | RerankOptions:
    """Re-ranking with options by their names in the API. Raises typer.BadParameter."""
    if not options:
        return wanted
    from passerby.v1.search_service_pb2 import RerankOptions

    made = RerankOptions()
    for name, value in parse_labels(options).items():
        try:
            if name in ("k1", "k2", "shortlist_size"):
                setattr(made, name, int(value))
            elif name == "original_weight":
                made.original_weight = float(value)
            elif name == "time_budget":
                made.time_budget.FromJsonString(value)
            else:
                names = ", ".join(field.name for field in RerankOptions.DESCRIPTOR.fields)
                raise typer.BadParameter(f"{name!r} is none of {names}", param_hint="'--rerank-option'")
        except ValueError:
            kind = {"original_weight": "number", "time_budget": "time such as 0.5s"}.get(name, "whole number")
            raise typer.BadParameter(f"{name}={value} is no {kind}", param_hint="'--rerank-option'") from None
    return made


def _images(paths: Sequence[Path]) -> list[Path]:
    """The images at `paths`; a folder stands for those in it, sorted by name, without sidecars such as `1.mask.png`."""
    from passerby.errors import NotFoundError

    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = _inside(path)
        if not inside:
            raise NotFoundError(
                f"{path}: holds no images; a query is one tracklet: a folder of JPEG, PNG or WebP files"
            )
        found += inside
    return found


def _inside(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and "." not in p.stem]


def _so_far(folder: Path) -> list[Path]:
    """The images in a folder that may be made later."""
    return _inside(folder) if folder.is_dir() else []


def _evenly(files: list[Path], count: int) -> list[Path]:
    """At most `count` of `files`, evenly spaced; all of them for a count of 0."""
    if not count or len(files) <= count:
        return files
    return [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]


def _as_json(answer: SearchTrackletsResponse) -> object:
    for hit in answer.hits:
        hit.ClearField("thumbnail")  # pictures go into the picture
    values = plain(answer)
    for rank, hit in enumerate(values["hits"], start=1):
        del hit["thumbnail"]
        values["hits"][rank - 1] = {"rank": rank, **hit}
    return values


def _table(answer: SearchTrackletsResponse, *, grouped: bool, brief: bool = False) -> Table:
    """The hits; `brief` leaves out until when they were seen."""
    decided = any(hit.decision for hit in answer.hits)
    starts = [hit.tracklet.start_time for hit in answer.hits]
    ends = [] if brief else [hit.tracklet.end_time for hit in answer.hits]
    columns = ["rank", "identity", "camera", timed("from" if brief else "seen", [*starts, *ends]), "distance"]
    columns += ["re-ranked"] * answer.reranked + ["decision"] * decided + ["tracklet"] + ["more"] * grouped
    table = new_table(*columns, right=("rank", "distance", "re-ranked", "more"), whole=tuple(columns))
    for rank, hit in enumerate(answer.hits, start=1):
        found = hit.tracklet
        seen = local_time(found.start_time) if brief else time_span(found.start_time, found.end_time)
        table.add_row(*_row(rank, hit, seen, answer.reranked, decided, grouped))
    if not answer.hits:
        table.caption = "no hits"
    return table


def _row(rank: int, hit: SearchHit, seen: str, reranked: bool, decided: bool, grouped: bool) -> list[str]:
    from passerby.v1.search_service_pb2 import Decision

    found = hit.tracklet
    row = [str(rank), found.identity_id or "unknown", found.camera_id, seen]
    row.append(f"{hit.distance:.4f}")
    if reranked:
        row.append(f"{hit.reranked_distance:.4f}" if hit.HasField("reranked_distance") else "")
    if decided:
        row.append(Decision.Name(hit.decision).removeprefix("DECISION_").lower().replace("_", " "))
    row.append(last_part(found.name))
    if grouped:
        row.append(f"+{len(hit.siblings)}")
    return row
