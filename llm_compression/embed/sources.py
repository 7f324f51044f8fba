"""What there is to embed: folders, lists of paths, Parquet, Arrow and Feather files, and tar shards, as fragments.

A fragment says which rows it has without reading a pixel; `read_rows` reads them.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, TextIO

import pyarrow as pa

from llm_compression.embed.texts import EXPECTED, texts_of
from llm_compression.errors import SourceError
from llm_compression.multimodal.image_check import is_image_name

Kind = Literal["files", "list", "parquet", "ipc", "tar"]
# Paths that one fragment carries, and so one shard at most.
PATHS_PER_FRAGMENT: Final = 4096
STDIN: Final = "-"
_PARQUET: Final = (".parquet", ".pq")
_IPC: Final = (".arrow", ".feather", ".ipc")
_LIST: Final = (".txt", ".lst")
_TAR: Final = ".tar"
# Members of a tar shard's samples that go through as texts.
TAR_TEXTS: Final = ("txt", "json")
_WITH_TEXTS: Final = "tables or tar shards where texts are embedded"
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Columns that an image may lie in where none is named, the first that is there.
_IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "image_path", "path")


@dataclass(frozen=True)
class Fragment:
    """A part of the input whose rows are counted.

    Attributes:
        kind: How it is read.
        uri: The file, or the folder or list that the paths came from.
        rows: How many rows it has.
        identity: Changes when the file, or the names of the paths, do.
        paths: Of ``files`` and ``list``, one for each row.
        start: Of a ``list``, the line of its first path.
        image_column: Of a table, the column that holds the images; None where none are read.
        text_column: Of a table or a tar shard, the column that holds the texts to embed; None where none are.
        with_images: Whether images are read.
    """

    kind: Kind
    uri: str
    rows: int
    identity: str
    paths: tuple[str, ...] = ()
    start: int = 0
    image_column: str | None = None
    text_column: str | None = None
    with_images: bool = True


@dataclass
class Sources:
    """The fragments of an input in order, how many files of a folder are no images, by suffix, and what is read."""

    text_column: str | None = None
    with_images: bool = True
    fragments: list[Fragment] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Rows of all fragments."""
        return sum(fragment.rows for fragment in self.fragments)


def find_sources(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    with_images: bool = True,
    stdin: TextIO | None = None,
) -> Sources:
    """The rows behind some names, counted and not read.

    Args:
        inputs: Folders, taken with all that lies below them; image files; patterns such as ``photos/*.jpg``; text files
            of paths, one a line; ``-``, the same from standard input; Parquet, Arrow and Feather files; tar shards.
        image_column: Which column of a table holds the images; found by type and name unless given.
        text_column: Which column of a table, or ``txt`` of a tar shard, holds texts to embed; none unless given.
        with_images: Whether images are read; otherwise a table needs no column of them.
        stdin: What ``-`` reads.

    Returns:
        The fragments, in the order of the inputs and sorted within a folder or pattern.

    Raises:
        SourceError: An input does not exist, is of another kind, is damaged, or has no column of images or texts.
    """
    found, loose = Sources(text_column, with_images), list[str]()
    for given in inputs:
        name = os.fspath(given)
        if name == STDIN:
            found.fragments += _listed(STDIN, [] if stdin is None else stdin)
            continue
        if "://" in name:
            raise SourceError(f"{name}: not a local file; mount or copy it, or give a list of local paths")
        path = Path(name)
        if path.is_dir():
            _add_folder(found, path, image_column)
        elif path.exists() or path.is_symlink():
            _add_file(found, path, image_column, loose)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # a pattern may be absolute
            if not matches:
                raise SourceError(f"{name}: no file matches")
            for match in matches:
                if Path(match).is_dir() and not is_image_name(match):
                    continue
                _add_file(found, Path(match), image_column, loose)
        else:
            raise SourceError(f"{name}: no such file or folder")
        found.fragments += _files(name, loose)
        loose.clear()
    if text_column is not None and (paths := [each for each in found.fragments if each.kind in ("files", "list")]):
        raise SourceError(f"{paths[0].uri}: paths of images have no column {text_column!r}, expected {_WITH_TEXTS}")
    return found


def _add_folder(found: Sources, folder: Path, image_column: str | None) -> None:
    """All files below a folder, sorted; a folder with an image's name is a row, hidden ones are passed over."""
    images, tables = list[str](), list[Path]()
    for parent, inner, names in os.walk(folder, onerror=_refuse):
        inner.sort()
        named = [name for name in inner if is_image_name(name)]
        inner[:] = [name for name in inner if not name.startswith(".") and name not in named]
        for name in sorted([*names, *named]):
            path = Path(parent, name)
            if name.startswith("."):
                found.passed_over["hidden"] += 1
            elif is_image_name(name):
                images.append(str(path))
            elif path.suffix.lower() in (*_PARQUET, *_IPC, _TAR):
                tables.append(path)
            else:
                found.passed_over[path.suffix.lower() or "no suffix"] += 1
    if images and tables:
        raise SourceError(
            f"{folder}: {len(images)} images beside {len(tables)} tables or tar shards such as {tables[0]}, expected "
            "one kind; name the files"
        )
    found.fragments += _files(str(folder), images)
    for path in tables:
        _add_file(found, path, image_column, images)


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _add_file(found: Sources, path: Path, image_column: str | None, loose: list[str]) -> None:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(_COMPRESSED):
        raise SourceError(f"{path}: a compressed archive has no random access; unpack it to .tar first")
    if suffix in _PARQUET and path.is_file():
        found.fragments.append(_parquet(found, path, image_column))
    elif suffix in _IPC and path.is_file():
        found.fragments.append(_ipc(found, path, image_column))
    elif suffix == _TAR and path.is_file():
        if found.text_column not in (None, *TAR_TEXTS):
            raise SourceError(f"{path}: no texts {found.text_column!r}, expected {' or '.join(TAR_TEXTS)}")
        rows, identity = len(tar_samples(path)), file_identity(path)
        wanted: dict[str, Any] = {"text_column": found.text_column, "with_images": found.with_images}
        found.fragments.append(Fragment("tar", str(path), rows, identity, **wanted))
    elif suffix in _LIST and path.is_file():
        try:
            with path.open(encoding="utf-8", errors="surrogateescape") as lines:
                found.fragments += _listed(str(path), lines)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    else:
        loose.append(str(path))


def _files(uri: str, paths: Sequence[str]) -> list[Fragment]:
    return [
        Fragment("files", uri, len(part), _names_identity(part), part) for _, part in _parts(paths, PATHS_PER_FRAGMENT)
    ]


def _listed(uri: str, lines: Any) -> list[Fragment]:
    """Each line that is not empty is a row, and what it names is relative to here."""
    paths = [line.rstrip("\r\n") for line in lines]
    if paths:
        paths[0] = paths[0].removeprefix("\ufeff")
    kept = [path for path in paths if path.strip()]
    return [
        Fragment("list", uri, len(part), _names_identity(part), part, start)
        for start, part in _parts(kept, PATHS_PER_FRAGMENT)
    ]


def _parts(paths: Sequence[str], size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    for start in range(0, len(paths), size):
        yield start, tuple(paths[start : start + size])


def _names_identity(paths: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()


def file_identity(path: str | os.PathLike[str]) -> str:
    """Size and time of last change of a file, or what keeps it from being looked at."""
    try:
        found = Path(path).stat()
    except OSError as error:
        return type(error).__name__
    return f"{found.st_size}:{found.st_mtime_ns}"


def _parquet(found: Sources, path: Path, image_column: str | None) -> Fragment:
    import pyarrow.parquet as pq

    identity = file_identity(path)
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: not a sound Parquet file: {error}") from error
    return Fragment("parquet", str(path), rows, identity, **_columns_of(found, schema, image_column, path))


def _ipc(found: Sources, path: Path, image_column: str | None) -> Fragment:
    identity = file_identity(path)
    rows = sum(batch.num_rows for batch in ipc_batches(path))
    with pa.memory_map(str(path)) as file:
        try:
            schema = pa.ipc.open_file(file).schema
        except pa.ArrowInvalid:
            file.seek(0)
            schema = pa.ipc.open_stream(file).schema
    return Fragment("ipc", str(path), rows, identity, **_columns_of(found, schema, image_column, path))


def ipc_batches(path: str | os.PathLike[str]) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file, or of a stream in a file as Hugging Face's datasets keep, mapped.

    Raises:
        SourceError: It is neither, or is cut off.
    """
    try:
        with pa.memory_map(os.fspath(path)) as file:
            try:
                opened = pa.ipc.open_file(file)
            except pa.ArrowInvalid:
                file.seek(0)
                with pa.ipc.open_stream(file) as stream:
                    yield from stream
            else:
                for index in range(opened.num_record_batches):
                    yield opened.get_batch(index)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: not a sound Arrow file: {error}") from error


def _columns_of(found: Sources, schema: pa.Schema, image_column: str | None, path: Path) -> dict[str, Any]:
    """The columns of a table that are read, as fields of its fragment."""
    if len(set(schema.names)) != len(schema.names):
        raise SourceError(f"{path}: two columns have one name: {schema.names}")
    text = found.text_column
    if text is not None:
        if text not in schema.names:
            raise SourceError(f"{path}: no column {text!r}, expected one of {schema.names}")
        kind = schema.field(text).type
        if texts_of(pa.nulls(0, kind)) is None:
            raise SourceError(f"{path}: column {text!r} is {kind}, expected {EXPECTED}")
    wanted: dict[str, Any] = {"text_column": text, "with_images": found.with_images}
    return wanted | {"image_column": _column_of(schema, image_column, path, text) if found.with_images else None}


def _column_of(schema: pa.Schema, wanted: str | None, path: Path, text_column: str | None) -> str:
    def holds_images(kind: pa.DataType) -> bool:
        if isinstance(kind, pa.BaseExtensionType):
            return holds_images(kind.storage_type)
        if pa.types.is_dictionary(kind):
            return holds_images(kind.value_type)
        types = pa.types
        if types.is_struct(kind):
            names = {kind.field(index).name for index in range(kind.num_fields)}
            return bool(names) and names <= {"bytes", "path"}
        tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_string, types.is_large_string)
        return any(test(kind) for test in (*tests, types.is_string_view))

    if wanted is not None:
        if wanted not in schema.names:
            raise SourceError(f"{path}: no column {wanted!r}, expected one of {schema.names}")
        if not holds_images(schema.field(wanted).type):
            raise SourceError(
                f"{path}: column {wanted!r} is {schema.field(wanted).type}, expected encoded images (binary), paths "
                "(string) or struct<bytes, path>"
            )
        return wanted
    fitting = [name for name in schema.names if name != text_column and holds_images(schema.field(name).type)]
    encoded = [name for name in fitting if not pa.types.is_string(schema.field(name).type)]
    for candidates in ([name for name in _IMAGE_COLUMNS if name in fitting], encoded, fitting):
        if len(candidates) == 1 or (candidates and candidates[0] in _IMAGE_COLUMNS):
            return candidates[0]
    raise SourceError(f"{path}: no column, or several, that could hold images among {schema.names}; name it")


@dataclass(frozen=True)
class TarSample:
    """One sample of a tar shard: the members that share a key, by suffix."""

    key: str
    members: dict[str, tarfile.TarInfo]


_samples: dict[tuple[str, str], list[TarSample]] = {}


def tar_samples(path: str | os.PathLike[str]) -> list[TarSample]:
    """The samples of a tar shard, as img2dataset and webdataset write them, in order.

    A key is a member's name up to the first dot of its last part; members of one key follow one another. The list of
    the last archive is kept, as its shards are read one after another.

    Raises:
        SourceError: The archive is damaged or cut off, or a key or a suffix of it comes twice.
    """
    place = (os.fspath(path), file_identity(path))
    if place not in _samples:
        _samples.clear()
        _samples[place] = list(_read_samples(path))
    return _samples[place]


def _read_samples(path: str | os.PathLike[str]) -> Iterator[TarSample]:
    seen, key, members = set[str](), None, dict[str, tarfile.TarInfo]()
    size = Path(path).stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise SourceError(f"{path}: cut off within {member.name!r}")
                name = PurePosixPath(member.name)
                stem, _, suffix = name.name.partition(".")
                found = str(name.with_name(stem)) if stem else member.name
                if found != key:
                    if key is not None:
                        yield TarSample(key, members)
                    if found in seen:
                        raise SourceError(f"{path}: the sample {found!r} comes twice, or its members lie apart")
                    seen.add(found)
                    key, members = found, {}
                if suffix.lower() in members:
                    raise SourceError(f"{path}: two members {member.name!r}")
                members[suffix.lower()] = member
            end = archive.offset
        # tarfile takes a damaged header, or none, for the end
        with Path(path).open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise SourceError(
                    f"{path}: damaged or cut off at byte {end}, where neither a member nor the end stands"
                )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{path}: not a sound tar archive: {error}") from error
    if key is not None:
        yield TarSample(key, members)
