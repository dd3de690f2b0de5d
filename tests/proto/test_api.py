"""The API: every RPC of the design exists, and the committed stubs are what the .proto files make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from passerby.v1 import gallery_service_pb2, model_service_pb2, search_service_pb2, tracklet_service_pb2

ROOT = Path(__file__).resolve().parents[2]
SURFACE = {
    "GalleryService": "CreateGallery GetGallery ListGalleries UpdateGallery ReplaceGallery DeleteGallery GetGalleryStats"
    " SetRetention GetRetention ListAuditEntries",
    "TrackletService": "IngestTracklet StreamTracklet BulkIngestTracklets GetTracklet ListTracklets DeleteTracklet"
    " AssignIdentity MergeIdentities SplitIdentity UndoIdentityChange EraseIdentity",
    "SearchService": "SearchTracklets StreamSearchTracklets",
    "ModelService": "EmbedTracklet ExplainTracklet GetModelInfo ReloadBundle",
}


def test_surface_is_that_of_the_design() -> None:
    modules = [gallery_service_pb2, model_service_pb2, search_service_pb2, tracklet_service_pb2]
    services = {name: s for module in modules for name, s in module.DESCRIPTOR.services_by_name.items()}
    assert {name: " ".join(method.name for method in s.methods) for name, s in services.items()} == SURFACE


def test_lint_passes_and_stubs_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "proto/generate.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
