"""The pixels that every system is given, and how far its embeddings are from the reference's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_compression.errors import TensorError

Array: TypeAlias = npt.NDArray[np.float32]


def seeded_pixels(seed: int, index: int, image_size: int) -> Array:
    """The image of this number: normally distributed, as preprocessed pixels about are; float32 (3, S, S)."""
    return np.random.default_rng([seed, index]).standard_normal((3, image_size, image_size), dtype=np.float32)


@dataclass(frozen=True)
class Accuracy:
    """How far embeddings are from the reference's, over rows.

    Attributes:
        rows: Embeddings compared.
        cosine_min: Lowest cosine of an embedding to its reference.
        cosine_max: Highest.
        relative_error_min: Lowest norm of the difference, as a part of the norm of the reference.
        relative_error_max: Highest.
    """

    rows: int
    cosine_min: float
    cosine_max: float
    relative_error_min: float
    relative_error_max: float


def cosines(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cosine of each row of (n, dimension) to the same row of the reference, in float64: (n,)."""
    one, other = found.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / norms, np.float64)


def compare(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> Accuracy:
    """Compare embeddings, float (n, dimension) with n at least 1, with the reference's; NaN in a row stays NaN.

    Raises:
        TensorError: The shapes differ, or there is no row.
    """
    if found.shape != reference.shape or found.ndim != 2 or not len(found):
        raise TensorError(f"embeddings of shape {found.shape}, the reference has {reference.shape}")
    cosine = cosines(found, reference)
    difference = np.linalg.norm(found.astype(np.float64) - reference, axis=1)
    error = difference / np.linalg.norm(reference.astype(np.float64), axis=1)
    # numpy's min and max are NaN where a row is; Python's are not
    return Accuracy(len(found), *(float(value) for value in (cosine.min(), cosine.max(), error.min(), error.max())))


def merge(parts: Iterable[Accuracy]) -> Accuracy:
    """One `Accuracy` over the rows of several; NaN stays NaN."""
    parts = list(parts)
    return Accuracy(
        rows=sum(part.rows for part in parts),
        cosine_min=float(np.min([part.cosine_min for part in parts])),
        cosine_max=float(np.max([part.cosine_max for part in parts])),
        relative_error_min=float(np.min([part.relative_error_min for part in parts])),
        relative_error_max=float(np.max([part.relative_error_max for part in parts])),
    )
