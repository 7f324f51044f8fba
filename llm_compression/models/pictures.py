"""Pictures of one coloured shape each, drawn by Pillow, and what can be said about them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats: TypeAlias = npt.NDArray[np.float64]

IMAGE_SIZE: Final = 48
COLOURS: Final = {
    "red": (218, 38, 40),
    "orange": (242, 134, 26),
    "yellow": (238, 220, 48),
    "green": (48, 168, 66),
    "cyan": (62, 204, 212),
    "blue": (44, 78, 220),
    "purple": (136, 54, 184),
    "pink": (246, 132, 192),
}
# Shown and named in training only: without them a colour is learnt as one that does not have a certain shape.
MORE_COLOURS: Final = {
    "brown": (122, 76, 44),
    "teal": (18, 118, 122),
    "lime": (172, 236, 72),
    "navy": (24, 34, 108),
    "magenta": (232, 40, 222),
    "olive": (132, 132, 40),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
MORE_SHAPES: Final = ("bar", "arrow", "hourglass", "moon")
SIZES: Final = {"small": (10.0, 12.0), "large": (14.0, 18.0)}
TEXTURES: Final = ("plain", "striped", "dotted")
POSITIONS: Final = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
}
# Everything that can be true of a picture, in the order of a Picture's fields.
VALUES: Final = ((*COLOURS, *MORE_COLOURS), (*SHAPES, *MORE_SHAPES), tuple(SIZES), TEXTURES, tuple(POSITIONS))
# An eighth of the pairs, each colour and each shape once, that no training picture shows.
UNSEEN: Final = frozenset((colour, SHAPES[(index * 3 + 2) % len(SHAPES)]) for index, colour in enumerate(COLOURS))
SEEN: Final = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in UNSEEN)
# Half of the training's pictures are of the seen pairs, half have another colour or shape.
TRAINING: Final = (
    *SEEN,
    *SEEN,
    *((colour, shape) for colour in VALUES[0] for shape in VALUES[1] if colour in MORE_COLOURS or shape in MORE_SHAPES),
)
LABELS: Final = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

_ARTICLES: Final = ("a", "a", "an", "the", "")
_TEMPLATES: Final = ("{}", "{}", "a photo of {}", "a photo of {}", "a picture of {}", "a drawing of {}", "this is {}")
_SCALE: Final = 3  # drawn this much larger and shrunk, for smooth edges
# What captions say: most only a colour or only a shape, so that neither is learnt as a part of the other.
_BOTH: Final = 0.3
_SIZE_TEXTURE_POSITION: Final = (0.15, 0.15, 0.15)


@dataclass(frozen=True)
class Picture:
    """A picture by what is true of it; ``seed`` decides everything else: place, tilt, background, noise.

    Attributes:
        colour: One of `COLOURS` or `MORE_COLOURS`.
        shape: One of `SHAPES` or `MORE_SHAPES`.
        size: One of `SIZES`.
        texture: One of `TEXTURES`.
        position: One of `POSITIONS`.
        seed: Of the rest.
    """

    colour: str
    shape: str
    size: str
    texture: str
    position: str
    seed: int

    @property
    def label(self) -> str:
        """What it shows, as one of `LABELS`."""
        return f"{self.colour} {self.shape}"

    @property
    def attributes(self) -> tuple[int, ...]:
        """The index of each of its values in `VALUES`."""
        values = (self.colour, self.shape, self.size, self.texture, self.position)
        return tuple(known.index(value) for known, value in zip(VALUES, values, strict=True))

    def draw(self) -> Image.Image:
        """The picture: RGB, `IMAGE_SIZE` pixels square."""
        rng = random.Random(self.seed)
        radius = rng.uniform(*SIZES[self.size])
        room = IMAGE_SIZE / 2 - radius - 1
        right, down = POSITIONS[self.position]
        # within a side: at least half of the room that there is, and little across
        along = rng.uniform(0.55, 1.0) * room
        x, y = (along * side + rng.uniform(-0.25, 0.25) * room * (not side) for side in (right, down))
        mask = _mask(self.shape, (IMAGE_SIZE / 2 + x, IMAGE_SIZE / 2 + y), radius, rng.uniform(-0.2, 0.2))
        grey, tint = rng.choice((rng.uniform(10, 70), rng.uniform(150, 245))), 12
        background = np.array([grey + rng.uniform(-tint, tint) for _ in range(3)])
        paint = np.array([value + rng.uniform(-18, 18) for value in (COLOURS | MORE_COLOURS)[self.colour]])
        fill = _texture(self.texture, paint, background, rng)
        opacity = np.asarray(mask, np.float64)[..., None] / 255
        noise = np.random.default_rng(self.seed).normal(0, rng.uniform(0, 10), (IMAGE_SIZE, IMAGE_SIZE, 3))
        pixels = background * (1 - opacity) + fill * opacity + noise
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_pictures(count: int, seed: int, pairs: Sequence[tuple[str, str]] = SEEN) -> Iterator[Picture]:
    """Random pictures of some pairs of colour and shape, the pairs in turn.

    Args:
        count: How many.
        seed: Of what they show and of each one's own seed.
        pairs: What they show.
    """
    rng = random.Random(seed)
    for index in range(count):
        colour, shape = pairs[index % len(pairs)]
        rest = (rng.choice(tuple(SIZES)), rng.choice(TEXTURES), rng.choice(tuple(POSITIONS)))
        yield Picture(colour, shape, *rest, seed=rng.getrandbits(32))


def caption(picture: Picture, rng: random.Random) -> tuple[str, tuple[bool, ...]]:
    """A true sentence about a picture, and which of its attributes the sentence says: at least colour or shape."""
    both, first = rng.random() < _BOTH, rng.random() < 0.5
    said = [both or first, both or not first, *(rng.random() < share for share in _SIZE_TEXTURE_POSITION)]
    words = [
        rng.choice(_ARTICLES),
        picture.size if said[2] else "",
        picture.texture if said[3] else "",
        picture.colour if said[0] else "",
        picture.shape if said[1] else rng.choice(("shape", "thing")),
        picture.position if said[4] else "",
    ]
    return rng.choice(_TEMPLATES).format(" ".join(filter(None, words))), tuple(said)


def vocabulary() -> list[str]:
    """Every word that a caption can have, in alphabetical order."""
    texts = (*_ARTICLES, *_TEMPLATES, "shape thing", *(" ".join(known) for known in VALUES))
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def _mask(shape: str, centre: tuple[float, float], radius: float, tilt: float) -> Image.Image:
    """Where the shape is: L, antialiased."""
    size = IMAGE_SIZE * _SCALE
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    x, y, r = (value * _SCALE for value in (*centre, radius))
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            inner = 0.55 * r
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
    elif shape == "moon":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        draw.ellipse((x - 0.4 * r, y - 1.1 * r, x + 1.6 * r, y + 0.9 * r), fill=0)
    else:
        sine, cosine = math.sin(tilt), math.cos(tilt)
        corners = [(x + r * (cosine * u - sine * v), y + r * (sine * u + cosine * v)) for u, v in _outline(shape)]
        draw.polygon(corners, fill=255)
    return mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape around the origin, within a unit circle; y points down."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "bar":
        return [(-1, -0.28), (1, -0.28), (1, 0.28), (-1, 0.28)]
    if shape == "arrow":
        return [(-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)]
    if shape == "hourglass":
        return [(-0.8, -0.95), (0.8, -0.95), (0.1, 0), (0.8, 0.95), (-0.8, 0.95), (-0.1, 0)]
    if shape == "diamond":
        return [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "cross":
        arm = 0.3
        quarter = [(arm, -arm), (arm, -1.0), (-arm, -1.0)]
        turns = ((1, 0), (0, -1), (-1, 0), (0, 1))
        return [(c * u - s * v, s * u + c * v) for c, s in turns for u, v in quarter]
    if shape == "star":
        points = [(1.0 if i % 2 == 0 else 0.42, i * math.pi / 5) for i in range(10)]
        return [(length * math.sin(angle), -length * math.cos(angle)) for length, angle in points]
    assert shape == "heart"
    angles = [i * math.tau / 40 for i in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in angles
    ]


def _texture(texture: str, paint: Floats, background: Floats, rng: random.Random) -> Floats:
    """What fills the shape: (3,) or (size, size, 3)."""
    if texture == "plain":
        return paint
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    period, phase = rng.uniform(5.0, 7.0), rng.uniform(0, 5)
    if texture == "striped":
        angle = rng.uniform(0, math.pi)
        gap = np.sin((rows * math.sin(angle) + columns * math.cos(angle) + phase) * math.tau / period) > 0.3
    else:
        wave = np.sin((rows + phase) * math.tau / period) + np.sin((columns + phase) * math.tau / period)
        gap = wave > 0.9
    filled: Floats = np.where(gap[..., None], 0.55 * paint + 0.45 * background, paint)
    return filled
