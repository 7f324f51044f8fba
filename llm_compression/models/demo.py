"""The demo: pictures drawn on the spot, what the shipped model says they show, and a contact sheet of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from llm_compression.errors import ConfigError
from llm_compression.files import whole_file
from llm_compression.models import shapes_model
from llm_compression.models.pictures import IMAGE_SIZE, LABELS, SEEN, UNSEEN, Picture, draw_pictures
from llm_compression.multimodal.clip_engine import CLIPEngine

COLUMNS: Final = 6
_ZOOM: Final = 3
_MARGIN: Final = 12
_LINE: Final = 17
_RIGHT: Final = (24, 122, 60)
_WRONG: Final = (190, 30, 30)


@dataclass(frozen=True)
class Answer:
    """What the model said about a picture.

    Attributes:
        picture: The picture.
        label: The most probable of the labels.
        probability: How probable.
    """

    picture: Picture
    label: str
    probability: float

    @property
    def is_right(self) -> bool:
        """Whether that is what the picture shows."""
        return self.label == self.picture.label

    @property
    def is_unseen(self) -> bool:
        """Whether no picture of the training showed this colour with this shape."""
        return (self.picture.colour, self.picture.shape) in UNSEEN


def answers(engine: CLIPEngine, pictures: Sequence[Picture], labels: Sequence[str] = LABELS) -> list[Answer]:
    """What a model says about pictures, each classified among all labels."""
    probabilities = engine.classify([picture.draw() for picture in pictures], labels)
    found = zip(pictures, probabilities.argmax(1).tolist(), probabilities.max(1).tolist(), strict=True)
    return [Answer(picture, labels[index], probability) for picture, index, probability in found]


def run_demo(output: Path, count: int, seed: int) -> list[Answer]:
    """Draw pictures, half of them of pairs that the training never showed, classify them, write the contact sheet.

    Args:
        output: The image file to write.
        count: How many pictures.
        seed: What is drawn.

    Raises:
        ConfigError: ``output`` is no name of an image file.
    """
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"output: {output}, expected a name ending in .png, .jpg or .webp")
    # every other pair of each list, so that a short demo has many colours and shapes
    seen = draw_pictures(count - count // 2, seed, SEEN[::5] + SEEN[1::5] + SEEN[2::5])
    unseen = draw_pictures(count // 2, seed + 1, sorted(UNSEEN)[::3] + sorted(UNSEEN)[1::3] + sorted(UNSEEN)[2::3])
    found = answers(CLIPEngine(shapes_model()), [*seen, *unseen])
    with whole_file(output) as partial:
        contact_sheet(found).save(partial, Image.registered_extensions()[output.suffix.lower()])
    return found


def contact_sheet(found: Sequence[Answer]) -> Image.Image:
    """Each picture, enlarged, above the model's answer: green where it is right, red with the truth where it is not."""
    rows = -(-len(found) // COLUMNS)
    width, height = IMAGE_SIZE * _ZOOM + _MARGIN, IMAGE_SIZE * _ZOOM + 3 * _LINE + _MARGIN
    sheet = Image.new("RGB", (COLUMNS * width + _MARGIN, rows * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, answer in enumerate(found):
        x, y = _MARGIN + index % COLUMNS * width, _MARGIN + index // COLUMNS * height
        enlarged = answer.picture.draw().resize((IMAGE_SIZE * _ZOOM,) * 2, Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x, y))
        y += IMAGE_SIZE * _ZOOM + 2
        draw.text((x, y), answer.label, _RIGHT if answer.is_right else _WRONG, font)
        second = f"{answer.probability:.0%}" + (", pair never seen" if answer.is_unseen else "")
        draw.text((x, y + _LINE), second, "black", font)
        if not answer.is_right:
            draw.text((x, y + 2 * _LINE), f"is a {answer.picture.label}", _WRONG, font)
    return sheet
