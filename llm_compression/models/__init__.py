"""A model that ships with the package: a small CLIP that knows shapes and colours, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path


def shapes_model() -> Path:
    """The directory of the shipped model, for CLIPEngine; ``train_shapes.py`` beside it made it."""
    return Path(__file__).parent / "shapes"
