"""TextEncoder: token ids to embeddings, a BERT or a CLIP text tower whose weights are read from Parquet."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor, nn

from llm_compression.embedding_provider import require_batch_size
from llm_compression.errors import ConfigError, LlmCompressionError, TextError
from llm_compression.inference.clip_file import OUTSIDE_TEXT, is_clip, tower_config
from llm_compression.inference.inference_core import InferenceCore, norm_slot
from llm_compression.inference.linear import Linear, frozen, kept, resolve_device, resolve_dtype
from llm_compression.inference.placement import Slot, place
from llm_compression.inference.text_config import TextConfig
from llm_compression.inference.threads import limit_threads
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.progress import progress


class TextEncoder(nn.Module):
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
        FileNotFoundError: There is no weight file.
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
        super().__init__()
        limit_threads()
        self.weight_loader = WeightLoader(model_path)
        self.config = config = _config_of(self.weight_loader)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        not_judged = OUTSIDE_TEXT if is_clip(self.weight_loader.config) else ()
        self.weight_loader.check(config.expected_shapes(), not_judged)
        with torch.device("meta"):
            self.token_embedding = frozen(torch.empty(config.vocab_size, config.hidden_size))
            self.position_embedding = frozen(torch.empty(config.num_positions, config.hidden_size))
            # over the embeddings of a BERT, over the last hidden state of a CLIP
            self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            self.transformer = InferenceCore(
                hidden_size=config.hidden_size,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
                layer_norm_eps=config.layer_norm_eps,
                activation=config.hidden_act,
                norm="post" if config.is_bert else "pre",
                causal=not config.is_bert,
            )
            self.text_projection = (
                None if config.projection_dim is None else Linear(config.hidden_size, config.projection_dim, bias=False)
            )
        place(self.weight_loader, self._slots())
        self.eval()

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self.config.dimension

    @overload
    def forward(self, ids: Tensor, padding: Tensor | None = None, intermediates: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, ids: Tensor, padding: Tensor | None, intermediates: Literal[True]) -> dict[str, Tensor]: ...

    def forward(
        self, ids: Tensor, padding: Tensor | None = None, intermediates: bool = False
    ) -> Tensor | dict[str, Tensor]:
        """One pass: int64 (n, tokens) to float32 (n, dimension), not normalised.

        Args:
            ids: Token ids, special ones included.
            padding: bool (n, tokens), True where a token is padding; None where none is. A CLIP needs none for what
                stands behind the end token, which no earlier token can see.
            intermediates: Whether to return every step's tensor by name instead, ``embedding`` being the last.
        """
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

    def encode_ids(
        self,
        rows: Sequence[Sequence[int]],
        normalize: bool = True,
        batch_size: int = 32,
        *,
        show_progress: bool | None = False,
    ) -> Tensor:
        """Embed texts that were tokenized already.

        Texts of like length share a batch, so that little is padded; the rows come back in the order given.

        Args:
            rows: Token ids of each text, special ones included, without padding.
            normalize: Whether each embedding gets unit length.
            batch_size: Texts per forward pass.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            float32 (n, dimension), on the CPU.

        Raises:
            TextError: A row is empty or too long, has an id that the model does not, or no end token where the model
                needs one; or an embedding comes out zero, NaN or infinite. Carries the position.
            ConfigError: ``batch_size`` is not a positive whole number.
        """
        require_batch_size(batch_size)
        checked = [self._checked(row, position) for position, row in enumerate(rows)]
        out = torch.empty(len(checked), self.dimension)
        order = sorted(range(len(checked)), key=lambda i: len(checked[i]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        total = math.ceil(len(order) / batch_size)
        for batch in progress(batches, total=total, label="encoding", enabled=show_progress):
            with torch.inference_mode():
                embeddings = self(*self._padded([checked[i] for i in batch]))
                lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
                sound = (lengths.isfinite() & (lengths > 0)).flatten()
                if not bool(sound.all()):
                    position = batch[sound.tolist().index(False)]
                    raise TextError(
                        f"an embedding of zero, NaN or infinite length: use a dtype of wider range than {self.dtype}",
                        position=position,
                    )
                out[batch] = (embeddings / lengths if normalize else embeddings).to(out.device)
        return out

    def _checked(self, row: Sequence[int], position: int) -> list[int]:
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
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
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
        yield from self.transformer.slots(config.layer_prefix, config.layer_names, device, dtype)
        if self.text_projection is not None:
            load = self.text_projection.load
            yield Slot(("text_projection.weight",), lambda weight: load(weight, None, device, torch.float32))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TextEncoder:  # noqa: ARG002  # PyTorch's
        raise LlmCompressionError("a TextEncoder stays where it was built: pass device and dtype to TextEncoder(...)")


def _config_of(loader: WeightLoader) -> TextConfig:
    if loader.config is None:
        raise ConfigError(f"{loader.path}: no config in the file, and no config.json beside it")
    return TextConfig.from_dict(tower_config(loader.config, "text", loader.path))
