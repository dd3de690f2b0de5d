"""Who walks there: attributes, body and gait of a person, drawn from a seed and the person's number.

Clothing colours come from a small palette on purpose: many people share them, so that texture, logo,
accessory, hair and shape have to tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

# RGB. Few and muted, as on a real street.
PALETTE: dict[str, Colour] = {
    "black": (34, 34, 38),
    "grey": (128, 130, 134),
    "white": (222, 222, 218),
    "navy": (38, 50, 92),
    "blue": (62, 108, 176),
    "red": (172, 46, 48),
    "green": (58, 108, 70),
    "beige": (192, 170, 136),
}
UPPER_WEIGHTS = {"black": 5, "grey": 4, "white": 4, "navy": 4, "blue": 3, "red": 2, "green": 2, "beige": 2}
LOWER_WEIGHTS = {"black": 5, "navy": 5, "grey": 3, "beige": 2}
SKIN: dict[str, Colour] = {
    "pale": (236, 198, 176),
    "light": (220, 176, 146),
    "olive": (190, 144, 108),
    "brown": (146, 100, 70),
    "dark": (92, 62, 46),
}
HAIR: dict[str, Colour] = {
    "black": (26, 22, 22),
    "brown": (72, 46, 30),
    "blond": (196, 160, 98),
    "red": (136, 62, 34),
    "grey": (150, 148, 146),
}
UPPER_TYPES = ("coat", "jacket", "hoodie", "shirt", "t-shirt", "dress")
LOWER_TYPES = ("trousers", "jeans", "shorts", "skirt")
TEXTURES = (
    "plain",
    "stripes",
    "vertical stripes",
    "checks",
    "dots",
    "gradient",
    "mottled",
    "blocks",
    "diagonal",
    "band",
)
LOGOS = ("disc", "ring", "star", "triangle", "cross", "square", "heart", "bolt", "letter", "bars")
HAIR_STYLES = ("short", "long", "ponytail", "bun", "curly", "bald")
HAT_STYLES = ("cap", "beanie", "brimmed")
HANDBAG_STYLES = ("tote", "shoulder bag")


@dataclass(frozen=True)
class Attributes:
    """What one could write in a description of the person; constant over cameras and visits.

    Colours are names of PALETTE (hair and skin: of HAIR and SKIN); "" where the person has no such thing.
    """

    upper_type: str
    upper_colour: str
    upper_second_colour: str
    upper_texture: str
    sleeves: str  # "same", or "contrast": in the second colour
    front_logo: str
    back_logo: str
    lower_type: str  # "tights" or "bare legs" below a dress
    lower_colour: str
    lower_texture: str  # "plain" or "side stripe" or "checks"
    shoe_colour: str
    skin_tone: str
    hair_style: str
    hair_colour: str
    beard: bool
    backpack: bool
    backpack_colour: str
    handbag: bool
    handbag_style: str
    handbag_colour: str
    hat: bool
    hat_style: str
    hat_colour: str
    umbrella: bool
    umbrella_colour: str
    umbrella_second_colour: str


@dataclass(frozen=True)
class Body:
    """Build and gait. Lengths without a unit are factors on the average figure (1.0)."""

    height_m: float  # metres, 1.50..1.95
    build: float  # girth, 0.82..1.3
    shoulders: float
    hips: float
    legs: float  # leg length
    stride: float  # hip swing, radians
    cadence_hz: float  # walk cycles (two steps) per second
    arm_swing: float  # radians
    elbow: float  # mean elbow bend, radians
    lean: float  # forward lean of the trunk, radians
    toe_out: float  # radians
    speed_mps: float  # metres per second
    looseness: float  # how wide the clothes hang, 0..1
    hem: float  # how far coat, dress and skirt reach down, 0..1
    pocket_hand: int  # side that keeps its hand in the pocket: -1 right, 0 none, +1 left
    bag_side: int  # -1 right, +1 left


@dataclass(frozen=True)
class Person:
    """A person of the street: number, attributes, body, and the seed of the details of the textures."""

    index: int
    attributes: Attributes
    body: Body
    texture_seed: tuple[int, ...]


def make_person(seed: int, index: int, stream: int = 1) -> Person:
    """Person `index` of the street `seed`; the same whenever asked. `stream` 1 = identities, others = extras."""
    rng = np.random.default_rng([seed, stream, index])
    attributes = _attributes(rng)
    return Person(index, attributes, _body(rng, attributes), (seed, stream, index, 99))


def _pick(rng: np.random.Generator, options: tuple[str, ...] | dict[str, Colour]) -> str:
    names = tuple(options)
    return names[int(rng.integers(len(names)))]


def _weighted(rng: np.random.Generator, weights: dict[str, int], exclude: str = "") -> str:
    names = [name for name in weights if name != exclude]
    values = np.array([weights[name] for name in names], dtype=np.float64)
    return names[int(rng.choice(len(names), p=values / values.sum()))]


def _attributes(rng: np.random.Generator) -> Attributes:
    # Every draw is made whether it is used or not, so that one attribute never shifts the next ones.
    upper_type = _pick(rng, UPPER_TYPES)
    lower_type = _pick(rng, LOWER_TYPES)
    upper_colour = _weighted(rng, UPPER_WEIGHTS)
    second = _weighted(rng, UPPER_WEIGHTS, exclude=upper_colour)
    texture = _pick(rng, TEXTURES)
    front, back = _pick(rng, LOGOS), _pick(rng, LOGOS)
    chance = rng.random(12)
    bag_colours = [_weighted(rng, UPPER_WEIGHTS) for _ in range(4)]
    umbrella_second = _weighted(rng, UPPER_WEIGHTS, exclude=bag_colours[3])
    lower_colour, tights = _weighted(rng, LOWER_WEIGHTS), _weighted(rng, {"black": 2, "navy": 1, "grey": 1})
    styles = (_pick(rng, HANDBAG_STYLES), _pick(rng, HAT_STYLES), _pick(rng, HAIR_STYLES))
    shoe = _weighted(rng, {"black": 4, "white": 3, "red": 1, "beige": 2, "blue": 1})
    skin, hair = _pick(rng, SKIN), _pick(rng, HAIR)
    if upper_type == "dress":
        lower_type, lower_colour = ("tights", tights) if chance[0] < 0.5 else ("bare legs", "")
    busy = texture in ("checks", "dots", "mottled")  # a logo would drown in these
    umbrella = bool(chance[1] < 0.1)
    hat = bool(chance[2] < 0.25)
    handbag, backpack = bool(chance[3] < 0.3), bool(chance[4] < 0.33)
    return Attributes(
        upper_type=upper_type,
        upper_colour=upper_colour,
        upper_second_colour=second,
        upper_texture=texture,
        sleeves="contrast" if chance[5] < 0.25 and upper_type != "coat" else "same",
        front_logo=front if chance[6] < 0.5 and not busy else "",
        back_logo=back if chance[7] < 0.45 and not busy else "",
        lower_type=lower_type,
        lower_colour=lower_colour,
        lower_texture=_lower_texture(lower_type, float(chance[8])),
        shoe_colour=shoe,
        skin_tone=skin,
        hair_style=styles[2],
        hair_colour=hair if styles[2] != "bald" else "",
        beard=bool(chance[9] < 0.15) and styles[2] in ("short", "bald", "curly"),
        backpack=backpack,
        backpack_colour=bag_colours[0] if backpack else "",
        handbag=handbag,
        handbag_style=styles[0] if handbag else "",
        handbag_colour=bag_colours[1] if handbag else "",
        hat=hat,
        hat_style=styles[1] if hat else "",
        hat_colour=bag_colours[2] if hat else "",
        umbrella=umbrella,
        umbrella_colour=bag_colours[3] if umbrella else "",
        umbrella_second_colour=umbrella_second if umbrella else "",
    )


def _lower_texture(lower_type: str, chance: float) -> str:
    if lower_type in ("trousers", "shorts") and chance < 0.25:
        return "side stripe"
    if lower_type in ("trousers", "shorts", "skirt") and chance > 0.75:
        return "checks"
    return "plain"


def _body(rng: np.random.Generator, attributes: Attributes) -> Body:
    values = rng.random(15)

    def between(position: int, low: float, high: float) -> float:
        return float(low + (high - low) * values[position])

    side = 1 if values[12] < 0.5 else -1
    free = attributes.umbrella or attributes.handbag_style == "tote"
    pocket = 0 if free or values[13] > 0.25 else (1 if values[14] < 0.5 else -1)
    return Body(
        height_m=between(0, 1.5, 1.95),
        build=between(1, 0.82, 1.3),
        shoulders=between(2, 0.88, 1.12),
        hips=between(3, 0.9, 1.15),
        legs=between(4, 0.94, 1.05),
        stride=between(5, 0.28, 0.52),
        cadence_hz=between(6, 0.78, 1.08),
        arm_swing=between(7, 0.15, 0.6),
        elbow=between(8, 0.15, 0.6),
        lean=between(9, -0.02, 0.12),
        toe_out=between(10, 0.0, 0.35),
        speed_mps=between(6, 1.0, 1.7),
        looseness=between(11, 0.0, 1.0),
        hem=between(13, 0.0, 1.0),
        pocket_hand=pocket,
        bag_side=side,
    )
