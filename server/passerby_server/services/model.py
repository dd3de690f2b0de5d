"""ModelService."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata

from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby.v1 import model_service_pb2 as v1
from passerby.v1 import model_service_pb2_grpc as v1_grpc
from passerby.v1 import resources_pb2 as resources
from passerby_model.backends import BackendName

from passerby_server import messages
from passerby_server.interceptors import Context
from passerby_server.runtime import Loaded, Runtime, deadline_of

BACKENDS: Mapping[BackendName, v1.Backend.ValueType] = {
    "openvino": v1.BACKEND_OPENVINO,
    "onnxruntime": v1.BACKEND_ONNXRUNTIME,
    "onnxruntime-cuda": v1.BACKEND_ONNXRUNTIME,
    "onnxruntime-tensorrt": v1.BACKEND_ONNXRUNTIME,
    "tensorrt": v1.BACKEND_TENSORRT,
}
_FINGERPRINT = re.compile("([0-9a-f]{12,64})?")


class ModelService(v1_grpc.ModelServiceServicer):
    """Runs the model without a gallery, describes it, and loads it anew."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def EmbedTracklet(  # noqa: N802
        self, request: v1.EmbedTrackletRequest, context: Context
    ) -> v1.EmbedTrackletResponse:
        loaded = self._runtime.loaded
        encoded = await loaded.encoder.encode(request.frames.frames, deadline=deadline_of(context))
        return v1.EmbedTrackletResponse(
            tracklet_descriptor=resources.TrackletDescriptor(
                values=encoded.descriptor.tolist(), model_fingerprint=loaded.space.fingerprint
            ),
            snippet_count=encoded.snippet_count,
        )

    async def ExplainTracklet(  # noqa: N802
        self, request: v1.ExplainTrackletRequest, context: Context
    ) -> v1.ExplainTrackletResponse:
        loaded = self._runtime.loaded
        if not loaded.backend.spec.mask_blocks:
            raise FailedPreconditionError(
                f"the model {loaded.bundle.manifest.architecture} has no spatial masks: only encoders with COSAM do",
                reason="NO_MASKS",
            )
        encoded = await loaded.encoder.encode(request.frames.frames, deadline=deadline_of(context), with_masks=True)
        masks = [
            v1.SpatialMask(
                frame_index=index, height=mask.shape[0], width=mask.shape[1], values=mask.ravel().tolist(), block=block
            )
            for block, stack in sorted(encoded.masks.items())
            for index, mask in enumerate(stack)
        ]
        return v1.ExplainTrackletResponse(masks=masks, model_fingerprint=loaded.space.fingerprint)

    async def GetModelInfo(  # noqa: N802
        self, request: v1.GetModelInfoRequest, context: Context
    ) -> v1.GetModelInfoResponse:
        return v1.GetModelInfoResponse(model_info=_info(self._runtime.loaded), server_version=_server_version())

    async def ReloadBundle(  # noqa: N802
        self, request: v1.ReloadBundleRequest, context: Context
    ) -> v1.ReloadBundleResponse:
        if not _FINGERPRINT.fullmatch(request.model_fingerprint):
            raise InvalidArgumentError(
                f"model_fingerprint {request.model_fingerprint[:80]!r} is no fingerprint: its 64 hex digits, or the first 12 "
                "or more of them",
                reason="FINGERPRINT_MALFORMED",
            )
        before, loaded = await self._runtime.reload(request.model_fingerprint)
        return v1.ReloadBundleResponse(model_info=_info(loaded), previous_fingerprint=before)


@cache
def _server_version() -> str:
    return metadata.version("passerby")  # reads and parses a file: a millisecond


def _info(loaded: Loaded) -> v1.ModelInfo:
    manifest = loaded.bundle.manifest
    return v1.ModelInfo(
        model_fingerprint=manifest.fingerprint,
        descriptor_dim=manifest.descriptor_dim,
        snippet_length=manifest.input.snippet_length,
        input_height=manifest.input.height,
        input_width=manifest.input.width,
        backend=BACKENDS[loaded.backend.name],
        max_batch_size=loaded.max_batch,
        architecture=manifest.architecture,
        metric=messages.METRICS[manifest.metric],
        mask_blocks=loaded.backend.spec.mask_blocks,
        bundle_name=manifest.name,
        calibrated=manifest.calibration is not None,
        precision=loaded.backend.precision,
    )
