"""Ablation: {no COSAM, COSAM_4, COSAM_5, COSAM_4,5} with TP, from one backbone, several seeds.

    python benchmarks/ablation.py --recipe bundles/recipes/ablation.yaml --street runs/data/street-test \
        --ward runs/data/ward --ward-identities bundles/recipes/ward-test-identities.txt --runs runs/ablation

Each variant is trained with the same recipe (only the architecture and the seed change), and judged on people it was
not trained on: all tracklets against all, same identity in the same camera excluded, plain AP, squared Euclidean
distance; masks against the street's silhouettes. A variant that is already in --runs is not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from passerby_model import attention, checkpoint, datasets, preprocess, validation
from passerby_model.attention_cli import open_model
from passerby_model.datasets import Tracklet
from rich.console import Console
from rich.table import Table

VARIANTS = {"none": "none", "COSAM_4": "cosam4", "COSAM_5": "cosam5", "COSAM_4,5": "cosam45"}
# The paper's own figure (Subramaniam et al., ICCV 2019): SE-ResNet50 + COSAM_4,5 + TP on MARS, in per cent.
PAPER_ON_MARS = {"COSAM_4,5": {"mAP": 79.9, "rank-1": 84.9}}


def train(variant: str, seed: int, options: argparse.Namespace) -> Path:
    """The checkpoint of a variant; trained unless it is there."""
    out: Path = options.runs / f"{VARIANTS[variant]}-{seed}"
    if not (out / "final.pt").is_file():
        command = [sys.executable, "-m", "passerby_export.train"]
        command += ["--resume"] if (out / "last.pt").is_file() else []
        command += [str(options.recipe), "--out", str(out), "--seed", str(seed), "--threads", str(options.threads)]
        command += ["--set", f"architecture={options.backbone}+{VARIANTS[variant]}+tp"]
        subprocess.run(command, check=True)
    return out / "final.pt"


def judge(
    path: Path, options: argparse.Namespace, ward: Sequence[Tracklet], street: Sequence[Tracklet]
) -> dict[str, Any]:
    """Ranking on WARD and on the street, AUC of the masks."""
    encoder = checkpoint.load(path).build().encoder.eval()
    result: dict[str, Any] = {}
    for name, tracklets in (("ward", ward), ("street", street)):
        found = validation.validate(encoder, tracklets, options.snippets, preprocess.read_image)
        result[name] = {key: round(value, 4) for key, value in asdict(found).items()}
    if encoder.architecture.cosam:
        result["masks"] = _mask_auc(path, options)
    return result


def _mask_auc(path: Path, options: argparse.Namespace) -> dict[str, float]:
    model = open_model(path, threads=options.threads)
    found = attention.evaluate_street(model.encode, options.street, model.snippet_length, model.size)
    quality = {f"cosam{block}": round(quality.auc, 4) for block, quality in found.blocks.items()}
    return {**quality, "centre_prior": round(found.centre_prior.auc, 4)}


def table(rows: dict[str, list[dict[str, Any]]]) -> Table:
    """Mean and, with several seeds, standard deviation of each figure, in per cent."""
    out = Table(
        "variant", "WARD rank-1", "WARD mAP", "street rank-1", "street mAP", "mask AUC 4", "mask AUC 5", "seeds"
    )
    for variant, results in rows.items():
        cells = [
            _spread([r[data][key] for r in results])
            for data in ("ward", "street")
            for key in ("rank1", "mean_average_precision")
        ]
        cells += [_spread([r["masks"][b] for r in results if b in r.get("masks", {})]) for b in ("cosam4", "cosam5")]
        out.add_row(variant, *cells, str(len(results)))
    return out


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--street", type=Path, required=True, help="street of other people, with masks")
    parser.add_argument("--ward", type=Path, required=True, help="WARD in the MARS layout")
    parser.add_argument("--ward-identities", type=Path, required=True, help="people that the recipe does not train on")
    parser.add_argument("--backbone", default="se_resnet50")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--snippets", type=int, default=2, help="snippets a tracklet, evenly spread")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", default="ablation", help="name of the file in benchmarks/results")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    ward = datasets.read(options.ward, identities=datasets.read_identities(options.ward_identities)).tracklets
    street = datasets.read(options.street).tracklets
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:  # all variants of a seed before the next one: an early end leaves a fair comparison
        for variant in VARIANTS:
            found = judge(train(variant, seed, options), options, ward, street)
            rows.setdefault(variant, []).append({"seed": seed, **found})
            Console().print(table(rows))
            save(
                options.result,
                {
                    "protocol": "all against all, same identity and camera excluded, plain AP, squared Euclidean",
                    "ward_queries": len(ward),
                    "street_queries": len(street),
                    "variants": rows,
                    "the_paper_on_mars": PAPER_ON_MARS,
                },
            )


if __name__ == "__main__":
    main()
