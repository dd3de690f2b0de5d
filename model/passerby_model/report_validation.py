"""What a run's report shows of the people who were held out: CMC, distances, ranked lists, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, PasserbyError

from passerby_model import attention_sheet, evaluation, figures, openset, protocol
from passerby_model.attention import Masks
from passerby_model.checkpoint import Checkpoint
from passerby_model.datasets import EvaluationSplit, Tracklet
from passerby_model.descriptors import ClipScheme
from passerby_model.embed import embed_tracklets, normalised
from passerby_model.encoder import TrackletEncoder
from passerby_model.report_page import Picture, Section
from passerby_model.street_labels import sample
from passerby_model.train_config import TrainConfig
from passerby_model.training_data import gather

# Of the queries with the best and with the worst average precision.
LISTS, HITS = 4, 8
ATTENTION_ROWS = 6


@dataclass(frozen=True)
class _Held:
    """The validation tracklets, ranked by the checkpoint's encoder."""

    tracklets: tuple[Tracklet, ...]
    trial: protocol.Trial
    table: evaluation.DescriptorTable
    ranking: evaluation.Ranking


def sections(saved: Checkpoint, config: TrainConfig, out: Path, tell: Callable[[str], None]) -> list[Section]:
    """Sections with pictures in `out`; what cannot be drawn is a section that says why."""
    if not config.val_identities:
        why = "No identities were held out (val_identities is 0), so nothing unseen could be ranked."
        return [Section("Validation", why)]
    try:
        data = gather(config)
        if list(data.names) != saved.metadata["identities"]:
            raise FailedPreconditionError("the data are no longer those that the run was trained on")
        held = data.validation
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoder = saved.build().encoder.to(device)
        ranked = _rank(encoder, saved, config, held, device, tell)
    except PasserbyError as error:
        return [Section("Validation", f"Could not be drawn: {error.message}")]
    drawn = [_figures(ranked, out), _distances(ranked, out), _lists(ranked, out)]
    return [*drawn, _attention(encoder, held, out, device)]


def _rank(
    encoder: TrackletEncoder,
    saved: Checkpoint,
    config: TrainConfig,
    held: tuple[Tracklet, ...],
    device: torch.device,
    tell: Callable[[str], None],
) -> _Held:
    tell(f"report: {len(held)} validation tracklets")
    descriptors = embed_tracklets(encoder, held, max_snippets=config.val_snippets, device=device)
    trial = protocol.trial(EvaluationSplit("validation", (), held, held), "plain")
    table = evaluation.DescriptorTable.of(
        held,
        descriptors,
        metric="squared_euclidean",
        fingerprint=saved.fingerprint,
        clip_scheme=str(ClipScheme(config.snippet_length, None, config.val_snippets)),
    )
    ranking = evaluation.measure(trial, table, data="validation", format="plain", lists=LISTS, hits=HITS)
    return _Held(held, trial, table, ranking)


def _figures(held: _Held, out: Path) -> Section:
    result = held.ranking.result
    path = figures.cmc_figure(out / "cmc.png", {result.protocol_name: np.array(result.cmc)}, title="CMC, validation")
    rows = [
        ("protocol", result.protocol_name),
        ("people, cameras", f"{result.identities}, {result.cameras}"),
        ("queries with a match", f"{result.valid_queries} of {result.queries}"),
        ("clips", result.clip_scheme),
        ("mAP", f"{100 * result.mean_average_precision:.1f} %"),
        *((f"rank-{rank}", f"{100 * result.rank(rank):.1f} %") for rank in protocol.RANKS),
    ]
    text = "On people held out of the training identities, never on test identities."
    return Section("Validation", text, rows, [Picture(path, "CMC of the validation split")])


def _distances(held: _Held, out: Path) -> Section:
    title = "Distances"
    try:
        found = evaluation.measure_open_set(held.trial, held.table, openset.RATES)
    except PasserbyError as error:
        return Section(title, f"Could not be drawn: {error.message}")
    thresholds = {f"FMR {p.target:g}": p.threshold for p in found.verification if p.threshold is not None}
    path = figures.histogram_figure(
        out / "distances.png",
        found.edges,
        found.genuine_counts,
        found.impostor_counts,
        title="Distances of pairs in different cameras, validation",
        distance="squared Euclidean distance",
        thresholds=thresholds,
    )
    return Section(title, pictures=[Picture(path, "histograms of the distances of one person and of two people")])


def _lists(held: _Held, out: Path) -> Section:
    pictures = []
    for name, chosen in (("worst", held.ranking.worst), ("best", held.ranking.best)):
        path = figures.ranked_lists_sheet(
            out / f"ranked_{name}.png", [_list(query) for query in chosen], title=f"Queries ranked {name}"
        )
        pictures.append(Picture(path, f"ranked lists of the queries with the {name} average precision"))
    text = "Green frames: the query's person; red: somebody else. The number below is the squared Euclidean distance."
    return Section("Ranked lists", text, pictures=pictures)


def _list(query: evaluation.RankedQuery) -> figures.RankedList:
    hits = tuple(
        figures.RankedCrop(_middle(tracklet), "same" if right else "other", f"{tracklet.camera}  {distance:.3g}")
        for tracklet, distance, right in query.hits
    )
    label = f"{query.query.identity}, camera {query.query.camera}: AP {100 * query.average_precision:.0f} %"
    return figures.RankedList(_middle(query.query), label, hits)


def _middle(tracklet: Tracklet) -> Path:
    return tracklet.frames[len(tracklet.frames) // 2]


def _attention(encoder: TrackletEncoder, held: Sequence[Tracklet], out: Path, device: torch.device) -> Section:
    title, arch = "Attention", encoder.architecture
    if not arch.cosam:
        return Section(title, f"{arch.name} has no COSAM, so it has no masks to show.")

    def encode(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Mapping[int, Masks]]:
        with torch.inference_mode():
            descriptors, masks = encoder(normalised(torch.from_numpy(pixels).to(device)))
        found = {block: np.asarray(values.float().cpu().numpy(), np.float32) for block, values in masks.items()}
        return np.asarray(descriptors.float().cpu().numpy(), np.float32), found

    chosen = sample(tuple(held), ATTENTION_ROWS)
    rows = [
        attention_sheet.snippet_row(encode, tracklet, arch.snippet_length, (arch.height, arch.width))
        for tracklet in chosen
    ]
    picture = attention_sheet.attention_sheet(rows, title="Where the encoder looks", subtitle="validation tracklets")
    path = out / "attention.png"
    picture.save(path)
    return Section(title, pictures=[Picture(path, "frames of validation tracklets with COSAM's masks over them")])
