"""The main job on a synthetic street: gallery, server, bulk index, search; a ranked table, rank-1/mAP and a picture.

    make demo        or        python benchmarks/demo.py --out demo

Everything goes through the `passerby` command and the server's API, as a user would do it. Nobody on the street is real.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, rank_over_server, running_server
from passerby_client import Client
from passerby_model.datasets import read

BUNDLE = ROOT / "bundles/street-ward-cosam45"
SEED = 2019  # people that the sample bundle was not trained on
IDENTITIES = 16
CAMERAS = 3
FRAMES = 8
PICTURE = "result.png"
OWNED = ".passerby-demo"  # written before anything else: a folder that holds it may be deleted, whatever became of it


def passerby(folder: Path, *arguments: str) -> None:
    """Runs and shows a `passerby` command in `folder`. Raises SystemExit with its status when it fails."""
    print("\n$ passerby " + " ".join(arguments), flush=True)
    done = subprocess.run([Path(sys.executable).parent / "passerby", *arguments], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def fresh(out: Path) -> None:
    """Makes `out` an empty folder of the demo; one that an earlier demo left, whole or interrupted, is emptied.

    Raises SystemExit when it holds anything else, which stays as it is.
    """
    owned = out / OWNED
    if out.exists() and not owned.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SystemExit(f"{out} was not made by the demo: name another folder with --out, or delete it yourself")
    out.mkdir(parents=True, exist_ok=True)
    owned.touch()
    for path in out.iterdir():  # the mark stays: to be interrupted here does no harm either
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != owned:
            path.unlink()


def write_street(root: Path) -> tuple[Path, Path]:
    """The street below `root`, split into what cameras 2 and 3 saw (gallery) and what camera 1 saw (query)."""
    street = root / "street"
    size = ["--identities", str(IDENTITIES), "--cameras", str(CAMERAS), "--frames", str(FRAMES), "--seed", str(SEED)]
    passerby(root, "street", street.name, *size)
    first = min(path.name for path in street.glob("*/*") if path.is_dir())
    query = root / "query"
    for camera in sorted(street.glob(f"*/{first}")):
        target = query / camera.relative_to(street)
        target.parent.mkdir(parents=True)
        camera.rename(target)
    shutil.copy(street / "street.json", query)
    return street, query


def show(address: str, gallery: Path, query: Path) -> None:
    """Indexes, searches one tracklet for people to look at, then all of them for the figures."""
    root, server = gallery.parent, ["--server", address]
    passerby(root, "gallery", "create", "street", *server)
    passerby(root, "index", gallery.name, "--gallery", "street", *server)
    queries = read(query).tracklets
    one = queries[0]
    frames = str(one.frames[0].parent.relative_to(root))
    arguments = ["--gallery", "street", "--top-k", "5", "--identity-of-query", one.identity, "--overlay"]
    passerby(root, "search", "--frames", frames, *arguments, "--picture", PICTURE, *server)
    with Client(address, timeout=300) as client:
        stored = read(gallery).tracklets
        ranking = rank_over_server(client, "street", queries, stored)
    rank_1, mean_ap = 100 * float(ranking.cmc[0]), 100 * ranking.mean_average_precision
    print(f"\n{ranking.valid_queries} people of camera 1 searched among {len(stored)} tracklets of the other cameras:")
    print(f"rank-1 {rank_1:.1f}   mAP {mean_ap:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    arguments = parser.parse_args()
    start = time.monotonic()
    out: Path = arguments.out.resolve()
    fresh(out)
    gallery, query = write_street(out)
    print(
        f"\n$ passerby serve --bundle {arguments.bundle.name} --data {out.name}/data --address 127.0.0.1:0", flush=True
    )
    with running_server(arguments.bundle, out / "data") as address:
        print(f"passerby is serving on {address}")
        show(address, gallery, query)
    print(f"picture: {out / PICTURE}   ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
