"""The weight file: one Parquet file, one row per tensor. Its schema, its metadata, and writing it.

Columns (all required): ``layer_name`` string, ``shape`` list<int64>, ``dtype`` string, ``data`` large_binary
(row-major little-endian bytes), ``num_params`` int64. One row group per transformer block, so that a reader can hold
one block at a time. Page checksums guard the data pages; the key-value metadata, which no page checksum covers, carries
its own hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llm_compression.errors import WeightFormatError
from llm_compression.files import whole_file
from llm_compression.inference.fingerprints import fingerprint

WEIGHTS_FILE: Final = "weights.parquet"
FORMAT_VERSION: Final = 2
# Versions that are read; they differ in the fingerprints.
READ_VERSIONS: Final = (1, FORMAT_VERSION)
KEY_PREFIX: Final = "llm_compression."

SCHEMA: Final = pa.schema(
    [
        pa.field("layer_name", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("num_params", pa.int64(), nullable=False),
    ]
)

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in DTYPES.items()}

# A Parquet page counts its bytes in 32 bits, and one tensor is one page.
MAX_TENSOR_BYTES: Final = 2**31 - 2**16

_BLOCK = re.compile(r"^.*?\.?layers?\.\d+\.|^.*?\.?resblocks\.\d+\.")


@dataclass(frozen=True)
class WeightMetadata:
    """What a weight file says about itself.

    Attributes:
        config: The model's configuration, ``model_type`` included.
        preprocessing: Constants that turn an input into the model's input (image size, mean, ...).
        source: Where the weights came from: ``name``, ``revision``, ``sha256`` of the source file.
        tensors_sha256: Hash over every tensor's name, dtype, shape and bytes, in file order; checked on demand.
        fingerprints: Tensor name to `fingerprint`; checked at every load. A page checksum proves that a page is
            intact, the fingerprint that it is the page of this tensor.
        format_version: Version of the format; `write_weights` writes the latest, whatever stands here.
    """

    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    tensors_sha256: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    _KEYS = ("config", "preprocessing", "source", "tensors_sha256", "fingerprints")

    def to_key_values(self) -> dict[str, str]:
        """The file's key-value metadata, with the hash that protects it."""
        values = {KEY_PREFIX + key: _canonical(getattr(self, key)) for key in self._KEYS}
        values[KEY_PREFIX + "format_version"] = str(self.format_version)
        values[KEY_PREFIX + "metadata_sha256"] = _hash_of_key_values(values)
        return values

    @classmethod
    def from_key_values(cls, stored: Mapping[bytes, bytes] | None, where: str) -> WeightMetadata | None:
        """Read the key-value metadata of a file; None when it has none of ours (the earlier layout).

        Raises:
            WeightFormatError: A key is missing, unknown or does not match the recorded hash, or the version is unknown.
        """
        try:
            decoded = {key.decode(): value.decode() for key, value in (stored or {}).items()}
        except UnicodeDecodeError as error:
            raise WeightFormatError(f"{where}: the file's metadata is not text: {error}") from error
        ours = {key: value for key, value in decoded.items() if key.startswith(KEY_PREFIX)}
        if not ours:
            return None
        others = {key: value for key, value in ours.items() if key != KEY_PREFIX + "metadata_sha256"}
        recorded, actual = ours.get(KEY_PREFIX + "metadata_sha256"), _hash_of_key_values(others)
        version = ours.get(KEY_PREFIX + "format_version")
        # first, since another version may have other keys
        if recorded == actual and version is not None and version not in map(str, READ_VERSIONS):
            read = " and ".join(map(str, READ_VERSIONS))
            raise WeightFormatError(f"{where}: format version {version}, this package reads versions {read}")
        expected = {KEY_PREFIX + key for key in (*cls._KEYS, "format_version", "metadata_sha256")}
        if set(ours) != expected:
            raise WeightFormatError(
                f"{where}: damaged metadata: missing {sorted(expected - set(ours))}, "
                f"unknown {sorted(set(ours) - expected)}"
            )
        if actual != recorded:
            raise WeightFormatError(f"{where}: damaged metadata: sha256 is {actual}, the file recorded {recorded}")
        values = {key: json.loads(ours[KEY_PREFIX + key]) for key in cls._KEYS}
        return cls(**values, format_version=int(ours[KEY_PREFIX + "format_version"]))


@dataclass(frozen=True)
class WriteReport:
    """What was written: file, tensors, parameters, data bytes, file bytes and the hash over the tensors."""

    path: Path
    num_tensors: int
    num_params: int
    data_bytes: int
    file_bytes: int
    tensors_sha256: str


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Row-major little-endian bytes of a CPU tensor; a view where the tensor is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


class TensorHash:
    """sha256 over tensors in file order: each row's name, dtype and shape as a JSON line, then its bytes."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def update(self, name: str, dtype: str, shape: Iterable[int], data: Any) -> None:
        """Add one row."""
        self._sha.update(json.dumps([name, dtype, list(shape)]).encode() + b"\n")
        self._sha.update(data)

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._sha.hexdigest()


def write_weights(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: WeightMetadata,
    *,
    compression: str = "none",
) -> WriteReport:
    """Write a weight file; it appears under its name only once it is whole.

    Tensors are taken one at a time, in the order given; keep those of a transformer block together, since each block
    becomes a row group.

    Args:
        path: The file to write, replaced if it exists; its directory is made.
        tensors: Pairs of name and CPU tensor, of a dtype in ``DTYPES``.
        metadata: Config, preprocessing and source; the hashes in it are computed here.
        compression: A Parquet codec (``none``, ``zstd``, ``lz4``, ``snappy``, ``gzip``).

    Raises:
        WeightFormatError: A name is repeated or empty, a dtype cannot be stored, or a tensor is over 2 GiB.
    """
    target = Path(path)
    digest, fingerprints = TensorHash(), dict[str, str]()
    num_params = data_bytes = 0
    with (
        whole_file(target) as partial,
        pq.ParquetWriter(
            partial,
            SCHEMA,
            compression=compression,
            use_dictionary=False,
            # min and max of a weight blob would repeat it in the footer
            write_statistics=False,
            write_page_checksum=True,
            # one tensor a page: the checksum of a page is the checksum of a tensor
            data_page_size=1,
            write_batch_size=1,
        ) as writer,
    ):
        for _, block in groupby(tensors, key=lambda pair: block_of(pair[0])):
            rows: list[dict[str, Any]] = []
            for name, tensor in block:
                data = _checked_bytes(name, tensor, fingerprints)
                dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
                digest.update(name, dtype, shape, data)
                fingerprints[name] = fingerprint(dtype, shape, data, FORMAT_VERSION)
                num_params += tensor.numel()
                data_bytes += data.nbytes
                rows.append(
                    {"layer_name": name, "shape": shape, "dtype": dtype, "data": data, "num_params": tensor.numel()}
                )
            columns = [pa.array([row[column.name] for row in rows], column.type) for column in SCHEMA]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        complete = replace(
            metadata,
            tensors_sha256=digest.hexdigest(),
            fingerprints=fingerprints,
            format_version=FORMAT_VERSION,
        )
        writer.add_key_value_metadata(complete.to_key_values())
    return WriteReport(target, len(fingerprints), num_params, data_bytes, target.stat().st_size, digest.hexdigest())


def block_of(name: str) -> str:
    """The transformer block that a tensor belongs to, as the prefix of its name; empty outside the blocks."""
    match = _BLOCK.match(name)
    return match.group() if match else ""


def _checked_bytes(name: str, tensor: torch.Tensor, seen: Mapping[str, str]) -> memoryview:
    if not name:
        raise WeightFormatError("a tensor needs a name, got an empty one")
    if name in seen:
        raise WeightFormatError(f"{name}: two tensors of this name")
    if tensor.dtype not in DTYPE_NAMES:
        raise WeightFormatError(f"{name}: dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    if tensor.nbytes > MAX_TENSOR_BYTES:
        raise WeightFormatError(f"{name}: {tensor.nbytes} bytes, a tensor can have {MAX_TENSOR_BYTES}")
    return tensor_bytes(tensor)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash_of_key_values(values: Mapping[str, str]) -> str:
    return hashlib.sha256(_canonical(dict(values)).encode()).hexdigest()
