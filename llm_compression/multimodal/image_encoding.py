"""What every encoder of images does with a call: batches, rows in order, and images that cannot be read."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods, require_batch_size
from llm_compression.embeddings import Array, column_of
from llm_compression.errors import ConfigError, ImageError, TextError
from llm_compression.multimodal.image_inputs import Images, image_sources
from llm_compression.progress import progress

Rows = TypeVar("Rows")
OnError = Literal["raise", "skip", "null"]
ON_ERROR: Final[tuple[OnError, ...]] = get_args(OnError)


class KeptRows(NamedTuple, Generic[Rows]):
    """What ``on_error="skip"`` gives: the rows of the images that could be read, and which those are.

    Attributes:
        embeddings: One row for each image that could be read: (k, dimension).
        positions: int64 (k,), the index of each row's image in the call's input.
        errors: An ImageError for each other image, with its position and name.
    """

    embeddings: Rows
    positions: npt.NDArray[np.int64]
    errors: tuple[ImageError, ...]


class _Found(NamedTuple):
    """The rows of a call before they take the form that was asked for."""

    rows: Tensor
    positions: npt.NDArray[np.int64]
    errors: tuple[ImageError, ...]

    def given(self, convert_to_tensor: bool, on_error: OnError) -> Any:
        rows = self.rows if convert_to_tensor else self.rows.numpy()
        return KeptRows(rows, self.positions, self.errors) if on_error == "skip" else rows


class ImageEncoding(EmbeddingMethods):
    """`encode` and `encode_arrow` over batches: a subclass says how images are read, and how a batch is embedded."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Width of an embedding."""

    @abstractmethod
    def _read_batches(self, images: Iterator[Any], batch_size: int, errors: list[ImageError]) -> Iterator[Sized]:
        """Read images, ``batch_size`` at a time; what is wrong with an unreadable one goes to ``errors``.

        Yields:
            The readable images of each batch, once its errors are in the list.
        """

    @abstractmethod
    def _embed_batch(self, batch: Any, normalize: bool) -> Tensor:
        """A batch of `_read_batches` to float32 (k, dimension) on the CPU.

        Raises:
            ImageError: An embedding is not finite or has no length; carries its position in the batch.
        """

    @overload
    def encode(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        on_error: Literal["raise", "null"] = "raise",
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        on_error: Literal["raise", "null"] = "raise",
        show_progress: bool | None = False,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        on_error: Literal["skip"],
        show_progress: bool | None = False,
    ) -> KeptRows[Array]: ...

    @overload
    def encode(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        on_error: Literal["skip"],
        show_progress: bool | None = False,
    ) -> KeptRows[Tensor]: ...

    def encode(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        on_error: OnError = "raise",
        show_progress: bool | None = False,
    ) -> Any:
        """Embed images.

        Args:
            images: A path, encoded bytes, an open file, a PIL image, or a uint8 array (H, W, 3), (H, W, 4) or (H, W);
                several as any iterable of these, a uint8 array (n, H, W, 3), an Arrow array, or a pandas or polars
                Series. A string is a path, always; words are marked, ``Text("a cat")``, for an encoder that takes them.
            normalize: Whether each embedding gets unit length.
            batch_size: Images read at a time; reading the next batch overlaps with encoding this one.
            convert_to_tensor: Whether to return a tensor, on the CPU, in place of an array.
            on_error: What becomes of images that cannot be read. ``raise``: an error that names every one of them;
                ``skip``: a `KeptRows`, which says whose the rows are; ``null``: a row of NaN for each.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            numpy float32 (n, dimension), in the order given; two dimensions also for one image. With
            ``on_error="skip"`` a `KeptRows` of fewer rows, their positions and the errors.

        Raises:
            ImageError: Images cannot be read; carries position and name of the first, and all of them in ``errors``.
                Or, whatever ``on_error`` says, an embedding is not finite, or the argument holds no images.
            ConfigError: ``batch_size`` or ``on_error`` is none.
        """
        found = self._encode(images, normalize, batch_size, on_error, show_progress)
        return found.given(convert_to_tensor, on_error)

    @overload
    def encode_arrow(
        self,
        array: pa.Array | pa.ChunkedArray,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        on_error: Literal["raise", "null"] = "raise",
    ) -> pa.FixedSizeListArray: ...

    @overload
    def encode_arrow(
        self,
        array: pa.Array | pa.ChunkedArray,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        on_error: Literal["skip"],
    ) -> KeptRows[pa.FixedSizeListArray]: ...

    def encode_arrow(
        self,
        array: pa.Array | pa.ChunkedArray,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        on_error: OnError = "raise",
    ) -> Any:
        """Embed a column of encoded images (binary), paths (string) or both (struct<bytes, path>), read in place.

        Args:
            array: The column, of any layout: views, dictionaries, extension types, chunks.
            normalize: Whether each embedding gets unit length.
            batch_size: Images read at a time.
            on_error: As in `encode`; with ``null``, what cannot be read, a null among it, is a null.

        Returns:
            fixed_size_list<float>[dimension], one row per row; it wraps the memory of the embedding matrix. With
            ``on_error="skip"`` a `KeptRows` of fewer rows.

        Raises:
            ImageError: As `encode`; a null cannot be read.
            ConfigError: As `encode`.
        """
        if not isinstance(array, pa.Array | pa.ChunkedArray):
            raise ImageError(f"got {type(array).__name__}, expected an Arrow array of binary or string")
        rows, positions, errors = self._encode(array, normalize, batch_size, on_error, False)
        nulls = None
        if on_error == "null" and errors:
            nulls = np.ones(len(rows), bool)
            nulls[positions] = False
        column = column_of(rows.numpy(), nulls)
        return KeptRows(column, positions, errors) if on_error == "skip" else column

    def _encode(
        self, images: Images, normalize: bool, batch_size: int, on_error: OnError, show_progress: bool | None
    ) -> _Found:
        """As `encode`; ``positions`` are those of the images that could be read, also where the others have a row."""
        require_batch_size(batch_size)
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error: {on_error!r}, expected one of {', '.join(ON_ERROR)}")
        items, count = image_sources(images)
        table, errors, positions = _Table(count, self.dimension), list[ImageError](), list[npt.NDArray[np.int64]]()
        taken, seen = 0, 0
        batches = self._read_batches(items, batch_size, errors)
        total = None if count is None else math.ceil(count / batch_size)
        for batch in progress(batches, total=total, label="encoding", enabled=show_progress):
            start, wrong = taken, errors[seen:]
            taken, seen = taken + len(batch) + len(wrong), len(errors)
            if on_error == "raise" and errors:
                continue  # the rest is read for its errors
            readable = np.setdiff1d(np.arange(start, taken), np.array([error.position for error in wrong], np.int64))
            rows = self._embed_readable(batch, normalize, readable)
            positions.append(readable)
            if on_error == "null" and wrong:
                padded = torch.full((taken - start, self.dimension), math.nan, dtype=torch.float32, device="cpu")
                padded[readable - start] = rows
                rows = padded
            table.append(rows)
        if on_error == "raise" and errors:
            raise all_of(errors)
        kept = np.concatenate(positions) if positions else np.empty(0, np.int64)
        return _Found(table.rows(), kept, tuple(errors))

    def _embed_readable(self, batch: Sized, normalize: bool, positions: npt.NDArray[np.int64]) -> Tensor:
        if not len(batch):
            return torch.empty(0, self.dimension, dtype=torch.float32, device="cpu")
        try:
            return self._embed_batch(batch, normalize)
        except (ImageError, TextError) as error:
            if error.position is None:
                raise
            raise type(error)(error.reason, position=int(positions[error.position])) from error


class _Table:
    """Rows that come in parts; where their number is known, each part goes straight to its place."""

    def __init__(self, count: int | None, dimension: int) -> None:
        table = torch.empty(count or 0, dimension, dtype=torch.float32, device="cpu")
        self._whole = None if count is None else table
        self._parts = [] if count is not None else [table]
        self._filled = 0

    def append(self, rows: Tensor) -> None:
        if self._whole is None:
            self._parts.append(rows)
        else:
            self._whole[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def rows(self) -> Tensor:
        return torch.cat(self._parts) if self._whole is None else self._whole[: self._filled]


def all_of(errors: Sequence[ImageError]) -> ImageError:
    """One error that names every image of some."""
    first, *others = errors
    if not others:
        return first
    found = ImageError(first.reason, position=first.position, name=first.name, others=others)
    found.__cause__ = first.__cause__
    return found
