"""What can go wrong, named by what the caller can do about it."""

from __future__ import annotations


class LlmCompressionError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(LlmCompressionError, ValueError):
    """A configuration value is missing, unknown or inconsistent."""


class WeightFormatError(LlmCompressionError, ValueError):
    """The file is not a sound weight file, or its tensors do not fit the model."""


class CheckpointError(LlmCompressionError, ValueError):
    """The source checkpoint cannot be converted."""


class TextError(LlmCompressionError, ValueError):
    """A text cannot be embedded.

    Attributes:
        position: Index of the text in the call's input, or None for what is wrong with the input as a whole.
    """

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        self.reason, self.position = reason, position
        super().__init__(f"{'text' if position is None else f'text {position}'}: {reason}")


class ImageError(LlmCompressionError, ValueError):
    """An image cannot be read.

    Attributes:
        position: Index of the image in the call's input, or None for a lone image.
        name: Path of the image, or a description of what was given.
    """

    def __init__(self, reason: str, *, position: int | None = None, name: str | None = None) -> None:
        self.reason, self.position, self.name = reason, position, name
        where = "image" if position is None else f"image {position}"
        super().__init__(f"{where}{f' ({name})' if name else ''}: {reason}")


class ImagePrecisionWarning(UserWarning):
    """The gray values of an image do not fit a byte, and the reference's conversion loses their levels."""
