"""Modules whose weights may be laid out for this processor, and that say so."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from llm_compression.errors import UnavailableError


class Network(nn.Module):
    """A module that may hold packed ones, and then refuses as a whole what they cannot do, before anything changes.

    The layout of a packed weight belongs to this processor: it cannot be saved, replaced, moved or copied.
    """

    def _save_to_state_dict(self, *given: Any, **options: Any) -> None:
        self._refuse_if_packed("saved", "read the tensors from the weight file, WeightLoader(path).load_weights()")
        super()._save_to_state_dict(*given, **options)

    def _load_from_state_dict(self, *given: Any, **options: Any) -> None:
        self._refuse_if_packed("replaced", "write a weight file and open it, such as VisionEncoder(path)")
        super()._load_from_state_dict(*given, **options)

    def _apply(self, *given: Any, **options: Any) -> Network:
        self._refuse_if_packed("moved or cast", "open the weight file again with another device or dtype")
        super()._apply(*given, **options)  # type: ignore[no-untyped-call]  # PyTorch's
        return self

    def __getstate__(self) -> Any:
        self._refuse_if_packed("copied or pickled", "copy or pickle the encoder, which is opened again from its file")
        return super().__getstate__()  # type: ignore[no-untyped-call]  # typeshed's

    def _refuse_if_packed(self, what: str, instead: str) -> None:
        for name, module in self.named_modules():
            if isinstance(module, PackedModule) and module.packed_weight is not None:
                where = f"{type(self).__name__}{f'.{name}' if name else ''}"
                shape = tuple(module.packed_weight.shape)
                raise UnavailableError(
                    f"{where}: a weight {shape} that is packed for this processor cannot be {what}: {instead}"
                )


class PackedModule(Network):
    """Holds its weight either as the parameter ``weight`` or, packed, as the buffer ``packed_weight``.

    Attributes:
        weight: The parameter; None once it is packed.
        packed_weight: The same matrix in oneDNN's blocked layout; None unless it is packed.
    """

    weight: Tensor
    packed_weight: Tensor | None

    def _hold(self, weight: nn.Parameter | None, packed: Tensor | None) -> None:
        """Keep one of the two."""
        self.weight = weight  # type: ignore[assignment]  # None is what PyTorch has for a parameter that is not there
        self.register_buffer("packed_weight", packed)

    def extra_repr(self) -> str:
        """The sizes, and whether the weight is packed."""
        return f"{super().extra_repr()}{'' if self.packed_weight is None else ', packed'}"
