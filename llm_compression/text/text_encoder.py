"""TextEncoder: token ids to embeddings, a BERT or a CLIP text tower whose weights are read from Parquet."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, overload

import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor

from llm_compression.embedding_provider import require_batch_size
from llm_compression.embeddings import Array
from llm_compression.errors import ConfigError, TensorError, TextError
from llm_compression.inference.clip_file import OUTSIDE_TEXT, tower_config
from llm_compression.inference.encoder import Encoder
from llm_compression.inference.layer_weights import core_slots, norm_slot
from llm_compression.inference.linear import frozen, kept
from llm_compression.inference.placement import Slot
from llm_compression.inference.threads import require_unforked
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.progress import progress
from llm_compression.settings import own_settings, undisturbed
from llm_compression.text.text_config import TextConfig


class TextEncoder(Encoder[TextConfig]):
    """A BERT sentence encoder or the text tower of a CLIP, from token ids on.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in, as in VisionEncoder.

    Attributes:
        config: Sizes of the encoder.
        dimension: Width of an embedding.
        device: Where it runs.
        dtype: What it computes in.

    Raises:
        MissingFileError: There is no weight file; where a checkpoint lies there, the message says how to convert it.
        WeightFormatError: The file is damaged, or its tensors do not fit the model: every missing, unexpected and
            mis-shaped one is named.
        ConfigError: The file has no configuration or an unsupported one, or the dtype is unknown.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
    ) -> None:
        loader = WeightLoader(model_path)
        super().__init__(loader, _config_of(loader), device, dtype, OUTSIDE_TEXT)

    def _build(self) -> None:
        """The parts of the encoder."""
        config = self.config
        self.token_embedding = frozen(torch.empty(config.vocab_size, config.hidden_size))
        self.position_embedding = frozen(torch.empty(config.num_positions, config.hidden_size))
        # over the embeddings of a BERT, over the last hidden state of a CLIP
        self.layernorm = self._norm()
        self.transformer = self._core(norm="post" if config.is_bert else "pre", causal=not config.is_bert)
        self.text_projection = self._projection()

    @overload
    def forward(self, ids: Tensor, padding: Tensor | None = None, intermediates: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, ids: Tensor, padding: Tensor | None, intermediates: Literal[True]) -> dict[str, Tensor]: ...

    @undisturbed
    def forward(
        self, ids: Tensor, padding: Tensor | None = None, intermediates: bool = False
    ) -> Tensor | dict[str, Tensor]:
        """One pass: int64 (n, tokens) to float32 (n, dimension), not normalised.

        Args:
            ids: Token ids, special ones included.
            padding: bool (n, tokens), True where a token is padding; None where none is. A CLIP needs none for what
                stands behind the end token, which no earlier token can see.
            intermediates: Whether to return every step's tensor by name instead, ``embedding`` being the last.

        Raises:
            TensorError: The ids or the mask have another shape or dtype.
            LlmCompressionError: As `require_unforked`.
        """
        require_unforked(self.device, self._process)
        longest = self.config.num_positions
        if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32) or not 0 < ids.shape[1] <= longest:
            found = f"{ids.dtype} {tuple(ids.shape)}"
            raise TensorError(f"ids: {found}, expected int64 (n, tokens) with 1 to {longest} tokens")
        steps: dict[str, Tensor] = {}
        x = F.embedding(ids, self.token_embedding)  # (n, tokens, hidden)
        x = steps["embeddings"] = x + self.position_embedding[: ids.shape[1]]
        if self.config.is_bert:
            x = steps["embedding_layernorm"] = self.layernorm(x)
        record = (lambda index, x: steps.update({f"transformer.{index}": x})) if intermediates else None
        # a cls row needs only the first token of the last block
        x = self.transformer(x, padding, self.config.pooling == "cls" and not intermediates, record)
        x = steps["pooled"] = self.pool(x, ids, padding)  # (n, hidden), float32 from here
        if not self.config.is_bert:
            x = steps["final_layernorm"] = self.layernorm(x)
        if self.text_projection is not None:
            x = self.text_projection(x)  # (n, projection)
        steps["embedding"] = x
        return steps if intermediates else x

    def pool(self, x: Tensor, ids: Tensor, padding: Tensor | None) -> Tensor:
        """One row of each text, as the configuration's ``pooling`` says: (n, tokens, hidden) to float32 (n, hidden)."""
        if self.config.pooling == "cls":
            return x[:, 0].float()
        if self.config.pooling == "mean":
            if padding is None:
                return x.float().mean(1)
            keep = (~padding)[:, :, None]
            return (x.float() * keep).sum(1) / keep.sum(1)
        end = self.config.eos_token_id
        found = ids == (ids.amax(1, keepdim=True) if end is None or self.config.pooling == "argmax" else end)
        # not argmax, which promises nothing about the order of equals
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        first = places.masked_fill(~found, ids.shape[1]).amin(1)
        return x[torch.arange(len(x), device=ids.device), first].float()

    @overload
    def encode_ids(
        self,
        rows: Iterable[Iterable[int]],
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode_ids(
        self,
        rows: Iterable[Iterable[int]],
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        show_progress: bool | None = False,
    ) -> Tensor: ...

    def encode_ids(
        self,
        rows: Iterable[Iterable[int]],
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        show_progress: bool | None = False,
    ) -> Array | Tensor:
        """Embed texts that were tokenized already.

        Texts of like length share a batch, so that little is padded; the rows come back in the order given.

        Args:
            rows: Token ids of each text, special ones included, without padding.
            normalize: Whether each embedding gets unit length.
            batch_size: Texts per forward pass.
            convert_to_tensor: Whether to return a tensor, on the CPU, in place of an array.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            numpy float32 (n, dimension).

        Raises:
            TextError: A row is empty or too long, has an id that the model does not, or no end token where the model
                needs one; or an embedding comes out zero, NaN or infinite. Carries the position.
            ConfigError: ``batch_size`` is not a positive whole number.
        """
        require_batch_size(batch_size)
        checked = [self._checked(row, position) for position, row in enumerate(rows)]
        out = torch.empty(len(checked), self.dimension, dtype=torch.float32, device="cpu")
        order = sorted(range(len(checked)), key=lambda i: len(checked[i]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        total = math.ceil(len(order) / batch_size)
        for batch in progress(batches, total=total, label="encoding", enabled=show_progress):
            with own_settings(), torch.inference_mode():
                embeddings = self(*self._padded([checked[i] for i in batch]))
                out[batch] = self._rows(embeddings, normalize, partial(_refused, batch)).to(out.device)
        return out if convert_to_tensor else out.numpy()

    def _checked(self, row: Iterable[int], position: int) -> list[int]:
        config = self.config
        try:
            ids = [operator.index(token) for token in row]
        except TypeError as error:
            raise TextError(f"token ids: {error}", position=position) from error
        if not 0 < len(ids) <= config.num_positions:
            raise TextError(f"{len(ids)} tokens, expected 1 to {config.num_positions}", position=position)
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            found = next(token for token in ids if not 0 <= token < config.vocab_size)
            raise TextError(f"token {found}, expected 0 to {config.vocab_size - 1}", position=position)
        if not config.is_bert:
            # what the vocabularies whose models pool at the largest id have there
            end = config.vocab_size - 1 if config.eos_token_id is None else config.eos_token_id
            if end not in ids:
                raise TextError(f"no end token {end} among its tokens", position=position)
        return ids

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """int64 (n, longest), and the mask where it is needed: a CLIP's end token sees nothing behind it."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=self.device)
        lengths = [len(row) for row in rows]
        if not self.config.is_bert or min(lengths) == longest:
            return ids, None
        places = torch.arange(longest, device=self.device)
        return ids, places >= torch.tensor(lengths, device=self.device)[:, None]

    def _slots(self) -> Iterator[Slot]:
        """What takes the tensors of the encoder."""
        config, device, dtype = self.config, self.device, self.dtype

        def take_tokens(weight: Tensor) -> None:
            # by far the largest tensor, alone in the buffer it was read into: no copy where the dtype is the file's
            self.token_embedding = frozen(weight.to(device, dtype))

        def take_positions(positions: Tensor, types: Tensor | None = None) -> None:
            # every token of a lone text is of type 0
            positions = positions if types is None else positions.float() + types[0].float()
            self.position_embedding = kept(positions, device, dtype)

        if config.is_bert:
            yield Slot(("embeddings.word_embeddings.weight",), take_tokens)
            positions = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
            yield Slot(positions, take_positions)
            norm, norm_dtype = "embeddings.LayerNorm", dtype
        else:
            yield Slot(("text_model.embeddings.token_embedding.weight",), take_tokens)
            yield Slot(("text_model.embeddings.position_embedding.weight",), take_positions)
            norm, norm_dtype = "text_model.final_layer_norm", torch.float32
        yield norm_slot(self.layernorm, (f"{norm}.weight", f"{norm}.bias"), device, norm_dtype)
        yield from core_slots(self.transformer, config.layer_prefix, config.layer_names, device, dtype)
        yield from self._projection_slots(self.text_projection, "text_projection.weight")


def _refused(batch: Sequence[int], index: int, reason: str) -> TextError:
    return TextError(reason, position=batch[index])


def _config_of(loader: WeightLoader) -> TextConfig:
    if loader.config is None:
        raise ConfigError(f"{loader.path}: no config in the file, and no config.json beside it")
    return TextConfig.from_dict(tower_config(loader.config, "text", loader.path))
