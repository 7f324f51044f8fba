"""Encoder: what the encoders of images and of texts share: opening, passing, judging rows, copying and pickling."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor, nn

from llm_compression.errors import MissingFileError, UnavailableError, WeightFormatError
from llm_compression.inference.clip_file import is_clip
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.linear import Linear, resolve_device, resolve_dtype
from llm_compression.inference.placement import Slot, place
from llm_compression.inference.threads import limit_threads, require_unforked
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.settings import own_settings


class _Sizes(Protocol):
    """What the configuration of an encoder says."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def projection_dim(self) -> int | None: ...
    @property
    def dimension(self) -> int: ...
    def expected_shapes(self) -> dict[str, tuple[int, ...]]: ...


SizesT = TypeVar("SizesT", bound=_Sizes)


class Encoder(ABC, Generic[SizesT]):
    """A network for inference, opened from a weight file, on one device and in one dtype for good.

    It holds PyTorch modules and is none: its weights are laid out for this processor, so there is no state to save,
    load or move. The file is its state. A copy and what is unpickled are opened again from it, by its path, on the same
    device and in the same dtype, and refused where it is no longer the same file; weights that were changed since
    do not go along.

    Args:
        loader: The weight file.
        config: Sizes of the encoder.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in.
        others: Prefixes of the names of tensors that a file of both towers holds for the other one.

    Attributes:
        weight_loader: The weight file.
        config: Sizes of the encoder.
        device: Where it runs.
        dtype: What it computes in.
    """

    def __init__(
        self,
        loader: WeightLoader,
        config: SizesT,
        device: str | torch.device | None,
        dtype: str | torch.dtype,
        others: tuple[str, ...],
    ) -> None:
        limit_threads()
        self.weight_loader = loader
        self.config = config
        self._process, self.device = os.getpid(), resolve_device(device)
        require_unforked(self.device, self._process)
        self.dtype = resolve_dtype(dtype, self.device)
        loader.check(config.expected_shapes(), others if is_clip(loader.config) else ())
        # plain tensors also where the caller is in inference mode, since the encoder outlives that
        with own_settings(), torch.inference_mode(False):
            with torch.device("meta"):
                self._build()
            place(loader, self._slots())
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.eval()

    @abstractmethod
    def _build(self) -> None:
        """Make the parts, on the meta device."""

    @abstractmethod
    def _slots(self) -> Iterator[Slot]:
        """What takes the tensors of the file."""

    def _core(self, norm: str = "pre", causal: bool = False) -> InferenceCore:
        """The transformer stack of the configuration's sizes."""
        config = self.config
        return InferenceCore(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=config.layer_norm_eps,
            activation=config.hidden_act,
            norm=norm,
            causal=causal,
        )

    def _norm(self) -> nn.LayerNorm:
        """A layer norm of the configuration's width."""
        return nn.LayerNorm(self.config.hidden_size, self.config.layer_norm_eps)

    def _projection(self) -> Linear | None:
        """What projects the pooled row, where the configuration has it."""
        config = self.config
        return None if config.projection_dim is None else Linear(config.hidden_size, config.projection_dim, bias=False)

    def _projection_slots(self, projection: Linear | None, name: str) -> Iterator[Slot]:
        """What takes the weight of a projection: one row costs nothing, so it is float32."""
        if projection is not None:
            load = projection.load
            yield Slot((name,), lambda weight: load(weight, None, self.device, torch.float32))

    @abstractmethod
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """One pass."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """As `forward`."""
        return self.forward(*inputs, **options)

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self.config.dimension

    def _rows(self, embeddings: Tensor, normalize: bool, refuse: Callable[[int, str], Exception]) -> Tensor:
        """The embeddings of a pass as they are handed out.

        Args:
            embeddings: (n, dimension).
            normalize: Whether each gets unit length.
            refuse: Makes the error for the first row that is none, from its index and the reason.

        Raises:
            Exception: What ``refuse`` makes: a row is zero, NaN or infinite.
        """
        lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        sound = (lengths.isfinite() & (lengths > 0)).flatten()
        if not bool(sound.all()):
            reason = "an embedding of zero, NaN or infinite length: check what was given, or use a dtype of wider range"
            raise refuse(sound.tolist().index(False), f"{reason} than {self.dtype}")
        return embeddings / lengths if normalize else embeddings

    def _options(self) -> dict[str, Any]:
        """Arguments of the constructor that open this encoder again, path, device and dtype aside."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        options = {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."), **self._options()}
        return reopened, (type(self), str(self.weight_loader.path.absolute()), self.weight_loader.sha256(), options)

    if not TYPE_CHECKING:  # what is not there is an error to mypy too

        def __getattr__(self, name: str) -> NoReturn:
            advice = next((advice for names, advice in _INSTEAD.items() if name in names), None)
            if advice is None and (name.startswith("_") or not hasattr(nn.Module, name)):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            advice = advice or "ask a part that is one, such as .transformer"
            # an AttributeError too, so that hasattr() says no
            kind = type(self).__name__
            raise UnavailableError(f"{kind}.{name}: an encoder is no nn.Module: {advice.format(name=kind)}")


_INSTEAD: Final[Mapping[tuple[str, ...], str]] = {
    (
        *("to", "cuda", "cpu", "xpu", "ipu", "mtia", "half", "float", "double", "bfloat16", "type", "to_empty"),
        "share_memory",
    ): "it stays where it was opened: pass device and dtype to {name}(...)",
    (
        *("state_dict", "parameters", "named_parameters", "buffers", "named_buffers", "get_parameter", "get_buffer"),
        *("get_extra_state", "register_state_dict_post_hook", "register_state_dict_pre_hook"),
    ): "its weight file is its state: read the tensors by its .weight_loader, load_weights() or get_layer(name)",
    (
        *("load_state_dict", "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook"),
        *("set_extra_state", "register_parameter", "register_buffer"),
    ): "its weight file is its state: write one and open that",
    (
        *("train", "eval", "requires_grad_", "zero_grad", "training"),
    ): "it is for inference only and always in evaluation mode: leave this out",
}


def reopened(kind: Callable[..., Encoder[Any]], path: str, sha256: str, options: Mapping[str, Any]) -> Encoder[Any]:
    """Open an encoder again that was copied or pickled.

    Args:
        kind: Its class.
        path: Its weight file.
        sha256: What `WeightLoader.sha256` said of the file.
        options: The other arguments of its constructor.

    Raises:
        MissingFileError: The file is gone.
        WeightFormatError: The file is another one now.
        LlmCompressionError: As the constructor: its device may not be here.
    """
    name = getattr(kind, "__name__", str(kind))
    try:
        _require_same(WeightLoader(path), sha256, name)
        encoder = kind(path, **options)
    except MissingFileError as error:
        raise MissingFileError(
            f"{path}: no such file; a {name} is copied and pickled as the path of its weight file, expected it there"
        ) from error
    # once more, since it was opened once more
    _require_same(encoder.weight_loader, sha256, name)
    return encoder


def _require_same(loader: WeightLoader, sha256: str, name: str) -> None:
    found = loader.sha256()
    if found != sha256:
        raise WeightFormatError(
            f"{loader.path}: changed since the {name} was copied or pickled: sha256 {found}, expected {sha256}"
        )
