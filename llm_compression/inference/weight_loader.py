"""WeightLoader: a weight file to tensors, streamed block by block, checked, strict."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llm_compression.columns import binary_views
from llm_compression.errors import LlmCompressionError, MissingTensorError, WeightFormatError
from llm_compression.inference.fingerprints import fingerprint
from llm_compression.inference.model_path import weight_file_of
from llm_compression.inference.weight_format import (
    DTYPE_NAMES,
    DTYPES,
    KEY_PREFIX,
    SCHEMA,
    TensorHash,
    WeightMetadata,
)
from llm_compression.json_text import parsed

_BUFFER_BYTES: Final = 1 << 20
_LISTING: Final = ["layer_name", "shape", "dtype", "num_params"]
_ACCEPTED_TYPES: Final[Mapping[str, tuple[pa.DataType, ...]]] = {
    "layer_name": (pa.string(), pa.large_string()),
    "dtype": (pa.string(), pa.large_string()),
    "data": (pa.large_binary(), pa.binary()),
    "num_params": (pa.int64(),),
}


@dataclass(frozen=True)
class TensorInfo:
    """One row of a weight file, without its data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    row_group: int

    @property
    def num_params(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.num_params * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """The dtype as a weight file writes it."""
        return DTYPE_NAMES[self.dtype]


class WeightLoader:
    """Reads a weight file. Opening it reads the listing only; tensors are read on demand.

    A file of the earlier layout (the same five columns, ``dtype`` such as ``torch.float16``, no metadata) is read too;
    its configuration comes from a ``config.json`` beside it.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file itself.

    Attributes:
        path: The file.
        metadata: What the file says about itself; None in the earlier layout.
        config: The model's configuration: from the metadata, or from ``config.json`` in the earlier layout; None where
            there is neither.
        tensors: Name to `TensorInfo`, in file order.

    Raises:
        MissingFileError: There is no such file.
        WeightFormatError: The file is not a sound weight file.
    """

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        self.path = weight_file_of(model_path)
        self._opened = _state_of(self.path)
        with self._open() as file:
            self.metadata = WeightMetadata.from_key_values(file.metadata.metadata, str(self.path))
            self._num_row_groups = file.num_row_groups
            self.tensors = self._read_listing(file)
        self.config = self._read_config() if self.metadata is None else dict(self.metadata.config)
        if self.metadata is not None and set(self.tensors) != set(self.metadata.fingerprints):
            listed, recorded = set(self.tensors), set(self.metadata.fingerprints)
            raise WeightFormatError(
                f"{self.path}: the rows are not those recorded: missing {sorted(recorded - listed)}, "
                f"unknown {sorted(listed - recorded)}"
            )

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in file order."""
        return list(self.tensors)

    def check(self, expected: Mapping[str, tuple[int, ...]], not_judged: tuple[str, ...] = ()) -> None:
        """Compare the listing with what a model needs, before any data is read.

        Args:
            expected: Name and shape of every tensor that the model needs.
            not_judged: Prefixes of the names of another model's tensors, where the file's configuration says that it
                holds one.

        Raises:
            WeightFormatError: With every missing, unexpected and mis-shaped tensor, in one message.
        """
        problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in self.tensors]
        problems += [
            f"unexpected: {name} {info.shape}"
            for name, info in self.tensors.items()
            if name not in expected and not name.startswith(not_judged)
        ]
        problems += [
            f"mis-shaped: {name} {self.tensors[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        problems += [
            f"not floating point: {name} {info.dtype}"
            for name, info in self.tensors.items()
            if name in expected and not info.dtype.is_floating_point
        ]
        if problems:
            raise WeightFormatError(f"{self.path}: the tensors do not fit the model\n  " + "\n  ".join(problems))

    def stream(self, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor in file order, one in memory at a time.

        Args:
            names: Only these; row groups that hold none of them are not read.

        Yields:
            Name and tensor. The tensor views the Arrow buffer that it was read into, in the dtype of the file.

        Raises:
            MissingTensorError: There is no tensor of one of the names.
            WeightFormatError: The data is damaged, or a weight is NaN or infinite.
        """
        groups: Iterable[int] = range(self._num_row_groups)
        if names is not None:
            groups = sorted({self._group_of(name) for name in names})
        yield from self._read_tensors(groups, names)

    def by_row_group(self, names: Iterable[str]) -> list[list[str]]:
        """Some tensors, those of a row group together, in file order; several threads may `stream` a list each."""
        return [list(group) for _, group in groupby(sorted(names, key=self._group_of), key=self._group_of)]

    def load_weights(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; the whole model in memory, in the dtype of the file.

        Raises:
            WeightFormatError: As `stream`.
        """
        return dict(self.stream())

    def get_layer(self, name: str) -> torch.Tensor:
        """One tensor.

        Raises:
            MissingTensorError: There is no tensor of this name.
            WeightFormatError: As `stream`.
        """
        return dict(self._read_tensors([self._group_of(name)]))[name]

    def verify(self) -> str:
        """Read every tensor and compare the hash over them with the recorded one.

        Returns:
            The sha256 over the tensors, in hexadecimal.

        Raises:
            WeightFormatError: The hash differs, the data is damaged, or the earlier layout recorded none.
        """
        if self.metadata is None:
            raise WeightFormatError(f"{self.path}: a file of the earlier layout records no hash to verify")
        digest = TensorHash()
        for info, data in self._read_data(range(self._num_row_groups)):
            digest.update(info.name, info.dtype_name, info.shape, data)
        if digest.hexdigest() != self.metadata.tensors_sha256:
            raise WeightFormatError(
                f"{self.path}: sha256 over the tensors is {digest.hexdigest()}, "
                f"the file recorded {self.metadata.tensors_sha256}"
            )
        return digest.hexdigest()

    def sha256(self) -> str:
        """What tells this file from another: the sha256 over its metadata, which records one over the tensors.

        For a file of the earlier layout, which records none, over its bytes and the configuration beside it.

        Raises:
            MissingFileError: A file of the earlier layout is gone.
            WeightFormatError: A file of the earlier layout changed since it was opened.
        """
        if self.metadata is not None:
            return self.metadata.to_key_values()[f"{KEY_PREFIX}metadata_sha256"]
        config = json.dumps(self.config, sort_keys=True).encode()
        with weight_file_of(self.path).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.sha256(config))
        self._require_unchanged()
        return digest.hexdigest()

    def _group_of(self, name: str) -> int:
        """The row group that holds a tensor."""
        if name not in self.tensors:
            raise MissingTensorError(f"{name}: no such tensor in {self.path}, which has {len(self.tensors)}")
        return self.tensors[name].row_group

    @contextmanager
    def _open(self, *, page_checksums: bool = True) -> Iterator[pq.ParquetFile]:
        with _format_errors(self.path):
            # buffered, so that a column chunk, which is a whole block, is not held beside the tensors decoded from it
            file = pq.ParquetFile(
                weight_file_of(self.path),  # it may be gone since
                memory_map=False,
                pre_buffer=False,
                buffer_size=_BUFFER_BYTES,
                page_checksum_verification=page_checksums,
            )
            with file:
                yield file

    def _read_config(self) -> dict[str, Any] | None:
        beside = self.path.parent / "config.json"
        if not beside.is_file():
            return None
        try:
            config = parsed(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightFormatError(f"{beside}: not JSON: {error}") from error
        if not isinstance(config, dict):
            raise WeightFormatError(f"{beside}: {type(config).__name__}, expected a JSON object")
        return config

    def _read_listing(self, file: pq.ParquetFile) -> dict[str, TensorInfo]:
        self._check_schema(file.schema_arrow)
        tensors: dict[str, TensorInfo] = {}
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=_LISTING, use_threads=False).to_pylist():
                if None in row.values() or None in row["shape"]:
                    raise WeightFormatError(f"{self.path}: a null in row {row}")
                info = TensorInfo(row["layer_name"], tuple(row["shape"]), self._dtype(row), group)
                if not info.name or info.name in tensors:
                    raise WeightFormatError(f"{self.path}: two tensors named {info.name!r}, or one without a name")
                if min(info.shape, default=0) < 0 or info.num_params != row["num_params"]:
                    raise WeightFormatError(
                        f"{self.path}: {info.name}: shape {info.shape} does not have {row['num_params']} elements"
                    )
                tensors[info.name] = info
        return tensors

    def _check_schema(self, schema: pa.Schema) -> None:
        if set(schema.names) != set(SCHEMA.names) or len(schema.names) != len(SCHEMA.names):
            raise WeightFormatError(f"{self.path}: columns {schema.names}, expected {SCHEMA.names}")
        for name, accepted in _ACCEPTED_TYPES.items():
            if schema.field(name).type not in accepted:
                raise WeightFormatError(f"{self.path}: {name} is {schema.field(name).type}, expected {accepted[0]}")
        shape = schema.field("shape").type
        if not pa.types.is_list(shape) or shape.value_type != pa.int64():
            raise WeightFormatError(f"{self.path}: shape is {shape}, expected list<int64>")

    def _dtype(self, row: Mapping[str, Any]) -> torch.dtype:
        name = str(row["dtype"])
        if self.metadata is None:
            # the prefix tells a file of the earlier layout from one of ours that lost its metadata
            if not name.startswith("torch."):
                raise WeightFormatError(f"{self.path}: no metadata, and dtype {name!r} is not of the earlier layout")
            name = name.removeprefix("torch.")
        if name not in DTYPES:
            raise WeightFormatError(
                f"{self.path}: {row['layer_name']}: dtype {row['dtype']!r}, expected one of {', '.join(DTYPES)}"
            )
        return DTYPES[name]

    def _read_tensors(
        self, groups: Iterable[int], names: Collection[str] | None = None
    ) -> Generator[tuple[str, torch.Tensor]]:
        for info, data in self._read_data(groups):
            if names is not None and info.name not in names:
                continue
            tensor = _as_tensor(info, data)
            if info.dtype.is_floating_point and not _is_finite(tensor):
                raise WeightFormatError(f"{self.path}: {info.name}: NaN or infinite weights")
            yield info.name, tensor

    def _require_unchanged(self) -> None:
        """A file of the earlier layout has no fingerprints by which the data of another would be told from its own."""
        if self.metadata is None and _state_of(weight_file_of(self.path)) != self._opened:
            raise WeightFormatError(f"{self.path}: changed since it was opened, expected the same file")

    def _read_data(self, groups: Iterable[int]) -> Generator[tuple[TensorInfo, memoryview]]:
        """Each tensor of some row groups with its bytes; checked for length and identity."""
        # a fingerprint by position sees whatever a page's checksum would, for which the bytes were read once more
        covered = self.metadata is not None and self.metadata.format_version > 1
        with self._open(page_checksums=not covered) as file:
            for group in groups:
                infos = [info for info in self.tensors.values() if info.row_group == group]
                # one row a batch: the decoded bytes of one tensor at a time
                batches = file.iter_batches(batch_size=1, row_groups=[group], columns=["data"], use_threads=False)
                blobs = (view for batch in batches for view in binary_views(batch.column(0)))
                for info in infos:
                    try:
                        data = next(blobs, None)
                    except (pa.ArrowException, OSError) as error:
                        raise WeightFormatError(f"{self.path}: {info.name}: damaged data: {error}") from error
                    self._check_data(info, data)
                    assert data is not None
                    self._require_unchanged()
                    yield info, data
                if next(blobs, None) is not None:
                    raise WeightFormatError(f"{self.path}: row group {group} has more data than names")

    def _check_data(self, info: TensorInfo, data: memoryview | None) -> None:
        if data is None or data.nbytes != info.num_bytes:
            raise WeightFormatError(
                f"{self.path}: {info.name}: {'no data' if data is None else f'{data.nbytes} bytes'}, "
                f"expected {info.num_bytes} bytes for {info.dtype} {info.shape}"
            )
        if self.metadata is None:
            return
        found = fingerprint(info.dtype_name, info.shape, data, self.metadata.format_version)
        if found != self.metadata.fingerprints[info.name]:
            raise WeightFormatError(f"{self.path}: {info.name}: these are not the bytes that were written")


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _as_tensor(info: TensorInfo, data: memoryview) -> torch.Tensor:
    if not info.num_params:
        return torch.empty(info.shape, dtype=info.dtype, device="cpu")
    if np.frombuffer(data, np.uint8).ctypes.data % info.dtype.itemsize:
        data = memoryview(bytearray(data))  # PyTorch needs its elements aligned; this one follows one of odd length
    return torch.frombuffer(data, dtype=info.dtype).reshape(info.shape)


def _is_finite(tensor: torch.Tensor) -> bool:
    # one NaN or infinity makes the sum non-finite, at a thirtieth of the cost; a sum may also overflow, so look again
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


@contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    """Arrow's complaints about a file, as ours."""
    try:
        yield
    # ArrowInvalid is a ValueError, a failed checksum an OSError, a nonsense size an ArrowMemoryError or OverflowError
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, LlmCompressionError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise WeightFormatError(f"{path}: not a sound Parquet file: {error}") from error
