"""The synthetic street: people who walk past cameras, drawn procedurally (NumPy and OpenCV only).

    people.py     who: attributes, body, gait            cameras.py    view, light, cast, optics, noise, JPEG
    textures.py   clothes, heads, bags, unrolled         scenes.py     what each camera looks at
    gait.py       joints from the phase of the walk      occluders.py  passers-by, poles, plants, cars
    figure.py     paints a person on a canvas.py         tracklets.py  all of it together, frame by frame

Licence-clean data for tests, demo, load and scale. Everything follows from (seed, identity, camera, visit): the same
versions of NumPy and OpenCV on the same kind of processor give the same bytes.

How hard: colours are shared (eight for clothes) and each camera has its own light and cast. 60 identities x 3 cameras
(front, side, back), same camera excluded, seeds 0, 1, 2 (chance: rank-1 1.7): HSV histograms of six stripes reach
rank-1 4.4, 1.1, 5.0 and mAP 8.5, 4.5, 7.8; with the true silhouettes and grey-world balance, which no camera can
have, 72.2, 17.8, 33.9 and 65.3, 16.9, 34.3 (benchmarks/street_difficulty.py). A network trained on real people only,
person-reidentification-retail-0277, reaches rank-1 88.9, 90.0, 87.8 and mAP 82.8, 89.5, 78.4 from four frames each.
"""

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
