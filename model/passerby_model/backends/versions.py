"""Which version of a runtime is installed."""

from __future__ import annotations

import importlib

from passerby_model.backends.openvino_package import import_openvino


def runtime_version(runtime: str) -> str:
    """The version, as the runtime itself says it. Raises ImportError when it is not installed."""
    if runtime == "openvino":
        return str(import_openvino().__version__)
    return str(importlib.import_module("tensorrt" if runtime == "tensorrt" else "onnxruntime").__version__)
