"""The tensors of a checkpoint by name, whatever kind of file holds them, each read when it is asked for."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch

from llm_compression.convert import wrappers
from llm_compression.errors import CheckpointError
from llm_compression.json_text import parsed

INSTALL: Final = "pip install 'llm-compression[convert]'"
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
# What every name has where the whole module was wrapped: DataParallel, torch.compile, FSDP.
_WHOLE_PREFIXES: Final = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
FileKind = Literal["safetensors", "pickle", "torchscript"]

_SAFETENSORS_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass
class TensorStore:
    """Tensors of one checkpoint.

    Attributes:
        kind: What kind of file they are in.
        shapes: Shape by name.
        dtypes: Data type by name, as PyTorch (or, for one that PyTorch lacks, safetensors) calls it.
    """

    kind: FileKind
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    _readers: dict[str, Callable[[], torch.Tensor]] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        """One tensor; its memory is the caller's to use until the files are closed."""
        return self._readers[name]()

    def add(
        self, name: str, shape: Sequence[int], dtype: str, reader: Callable[[], torch.Tensor], where: object
    ) -> None:
        """Take up one tensor; a second one of the same name is an error."""
        if name in self.shapes:
            raise CheckpointError(f"{where}: tensor {name!r} is in another file of this checkpoint too")
        self.shapes[name], self.dtypes[name], self._readers[name] = tuple(shape), dtype, reader

    def rename(self, rule: Callable[[str], str]) -> None:
        """Give every tensor the name that a rule makes of its own."""
        renamed = [rule(name) for name in self.shapes]
        if twice := sorted({name for name in renamed if renamed.count(name) > 1}):
            raise CheckpointError(f"tensors {twice} are there under two names, expected one")
        for table in (self.shapes, self.dtypes, self._readers):
            values: dict[str, Any] = dict(zip(renamed, table.values(), strict=True))
            table.clear()
            table.update(values)


def kind_of(path: Path) -> FileKind:
    """Which kind of file this is, by its name and, for a zip archive, its content."""
    if path.suffix == ".safetensors":
        return "safetensors"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return "torchscript"
    return "pickle"


@contextmanager
def open_tensors(files: Sequence[Path]) -> Iterator[TensorStore]:
    """Open the files of one checkpoint: one file, or all its shards.

    safetensors files and ``torch.save`` archives are mapped, so that a tensor is in memory only while it is used. A
    pickle is read with ``weights_only=True``: one that holds anything but tensors is an error, and its code never runs.
    A TorchScript archive is loaded whole, as OpenAI's own code does it; its code is TorchScript, not Python, and its
    methods are not called.

    Raises:
        CheckpointError: A file is damaged, not a checkpoint, or needs a library that is not installed.
    """
    for path in files:
        refuse_pointer(path)
    kinds = {kind_of(path) for path in files}
    if len(kinds) != 1:
        raise CheckpointError(f"{files[0].parent}: shards of different kinds: {', '.join(sorted(kinds))}")
    store = TensorStore(kinds.pop())
    add = {"safetensors": _add_safetensors, "pickle": _add_pickle, "torchscript": _add_torchscript}[store.kind]
    with ExitStack() as stack:
        for path in files:
            add(store, path, stack)
        while store.shapes and (found := next((p for p in _WHOLE_PREFIXES if _all_have(store, p)), None)):
            store.rename(lambda name, prefix=found: name.removeprefix(prefix))  # type: ignore[misc]  # bound at once
        yield store


def _all_have(store: TensorStore, prefix: str) -> bool:
    return all(name.startswith(prefix) for name in store.shapes)


def refuse_pointer(path: Path) -> None:
    """Refuse what git-lfs leaves in the place of a file that it has not fetched.

    Raises:
        CheckpointError: The file is such a pointer.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError:
        return  # whoever reads the file says why it cannot
    if start == _POINTER:
        raise CheckpointError(
            f"{path}: a git-lfs pointer in place of the file; fetch it with: git -C {path.parent} lfs pull --include "
            f"{path.name}"
        )


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        CheckpointError: It cannot be read, or git-lfs has not fetched it.
    """
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as text: {error}") from error


def sha256_of(files: Sequence[Path]) -> str:
    """sha256 over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: The file cannot be read, is not JSON, or holds something else than an object.
    """
    values = _read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a JSON object")
    return values


def read_json_list(path: Path) -> list[Any]:
    """A JSON array.

    Raises:
        CheckpointError: The file cannot be read, is not JSON, or holds something else than an array.
    """
    values = _read_json(path)
    if not isinstance(values, list):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a JSON array")
    return values


def _read_json(path: Path) -> Any:
    refuse_pointer(path)
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error


def _add_safetensors(store: TensorStore, path: Path, stack: ExitStack) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs the safetensors library: {INSTALL}") from error
    _require_names_once(path)
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        for name in file.keys():  # noqa: SIM118 - a handle, not a dictionary
            part = file.get_slice(name)
            dtype = part.get_dtype()
            known = _SAFETENSORS_DTYPES.get(dtype)
            store.add(
                name, part.get_shape(), _dtype_name(known) if known else dtype, _safetensors_reader(file, name), path
            )
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a sound safetensors file: {error}") from error


def _require_names_once(path: Path) -> None:
    """Hold the header against names that stand there twice, of which the library takes the last."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= path.stat().st_size else b""
    except OSError:
        return  # the library says why it cannot be read
    if header:
        try:
            parsed(header)
        except ValueError as error:
            raise CheckpointError(f"{path}: not a sound safetensors file: {error}") from error


def _safetensors_reader(file: Any, name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return read


def _add_pickle(store: TensorStore, path: Path, stack: ExitStack) -> None:  # noqa: ARG001 - one signature for all kinds
    try:
        # only the zip format of torch.save can be mapped
        with torch.serialization.safe_globals(list(wrappers.SAFE_TYPES)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # PyTorch's own text goes on to advise running the pickle's code
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: no checkpoint, or one that holds more than tensors{what}; a pickle's code is never run. Expected "
            "safetensors, or a state dict of tensors alone: torch.save(model.state_dict(), ...) where it was trained"
        ) from error
    # in a damaged file the unpickler raises whatever it comes upon: IndexError, struct.error, UnicodeDecodeError, ...
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint that torch.load can read: {error}") from error
    _add_dictionary(store, content, path)


def _add_torchscript(store: TensorStore, path: Path, stack: ExitStack) -> None:  # noqa: ARG001 - as above
    try:
        with warnings.catch_warnings():
            # OpenAI published TorchScript archives and nothing else
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
            module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a sound TorchScript archive: {error}") from error
    _add_dictionary(store, module.state_dict(), path)


def _add_dictionary(store: TensorStore, content: Any, path: Path) -> None:
    for name, tensor in wrappers.state_dict_in(content, path).items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, expected a tensor; save the state dict by "
                "itself, or under 'state_dict'"
            )
        store.add(name, tensor.shape, _dtype_name(tensor.dtype), _constant(tensor.detach()), path)


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
