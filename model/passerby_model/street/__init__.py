"""The synthetic street: people who walk past cameras, drawn procedurally (numpy and OpenCV only)."""

from passerby_model.street.cameras import Camera, make_camera
from passerby_model.street.config import StreetConfig
from passerby_model.street.people import Attributes, Body, Person, make_person
from passerby_model.street.sheet import contact_sheet
from passerby_model.street.tracklets import StreetTracklet, generate, render_tracklet
from passerby_model.street.writer import write

__all__ = [
    "Attributes",
    "Body",
    "Camera",
    "Person",
    "StreetConfig",
    "StreetTracklet",
    "contact_sheet",
    "generate",
    "make_camera",
    "make_person",
    "render_tracklet",
    "write",
]
