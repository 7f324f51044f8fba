"""What can go wrong, named by what the caller can do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# How many images a message names; `ImageError.errors` has all.
_SHOWN: Final = 20


class LlmCompressionError(Exception):
    """Base of every error this package raises on purpose. A copied or pickled one keeps its message and attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would give the finished message to the constructor once more
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(
    kind: type[LlmCompressionError], arguments: tuple[Any, ...], attributes: Mapping[str, Any]
) -> LlmCompressionError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class ConfigError(LlmCompressionError, ValueError):
    """A configuration value is missing, unknown or inconsistent."""


class WeightFormatError(LlmCompressionError, ValueError):
    """The file is not a sound weight file, or its tensors do not fit the model."""


class CheckpointError(LlmCompressionError, ValueError):
    """The source checkpoint cannot be converted."""


class MissingFileError(LlmCompressionError, FileNotFoundError):
    """A file that was named, or that belongs beside it, is not there."""


class MissingTensorError(LlmCompressionError, KeyError):
    """A weight file has no tensor of this name."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class MissingDependencyError(LlmCompressionError, ImportError):
    """What was asked for needs a library that is not installed; the message names the extra to install."""


class TensorError(LlmCompressionError, ValueError):
    """A tensor given to a network has another shape or dtype than it takes."""


class UnavailableError(LlmCompressionError, AttributeError):
    """A loaded network cannot do this, though PyTorch's modules can; the message says what to do."""


class SourceError(LlmCompressionError, ValueError):
    """What there is to embed cannot be read: an input does not exist, is damaged, or has no column of images."""


class SourceChangedError(SourceError):
    """A source is no longer what it was when the run was planned."""


class EmbedError(LlmCompressionError, RuntimeError):
    """A run cannot go on, or a data set belongs to other settings; the message says which, and the way out."""


class CheckpointWarning(UserWarning):
    """A checkpoint was converted as its files say, and they may say something wrong."""


class TextError(LlmCompressionError, ValueError):
    """A text cannot be embedded.

    Attributes:
        position: Index of the text in the call's input, or None for what is wrong with the input as a whole.
    """

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        self.reason, self.position = reason, position
        super().__init__(f"{'text' if position is None else f'text {position}'}: {reason}")


class ImageError(LlmCompressionError, ValueError):
    """An image cannot be read, or several of one call.

    Attributes:
        position: Index of the image in the call's input, or None for a lone image; of several, that of the first.
        name: Path of the image, or a description of what was given; of several, that of the first.
    """

    def __init__(
        self,
        reason: str,
        *,
        position: int | None = None,
        name: str | None = None,
        others: Sequence[ImageError] = (),
    ) -> None:
        self.reason, self.position, self.name, self._others = reason, position, name, tuple(others)
        where = "image" if position is None else f"image {position}"
        lines = [f"{where}{f' ({name})' if name else ''}: {reason}", *map(str, self._others[: _SHOWN - 1])]
        if len(self._others) >= _SHOWN:
            lines.append(f"and {len(self._others) - _SHOWN + 1} more images")
        super().__init__("\n".join(lines))

    @property
    def errors(self) -> tuple[ImageError, ...]:
        """One error for each image, this one first."""
        return (self, *self._others)


class ImagePrecisionWarning(UserWarning):
    """The gray values of an image do not fit a byte, and the reference's conversion loses their levels."""
