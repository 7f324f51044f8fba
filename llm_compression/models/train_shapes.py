"""Trains the shipped model: a small CLIP over the same InferenceCore that serves it; seeded, minutes on two cores.

A picture and a caption match when everything that the caption says is true of the picture, not only when the caption
was written for it: in a batch, several captions are true of one picture.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor, nn

from llm_compression.inference.inference_core import InferenceCore, TransformerLayer
from llm_compression.inference.layer_weights import CLIP_LAYER_NAMES
from llm_compression.inference.linear import PatchConv2d
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.models import shapes_model
from llm_compression.models.pictures import (
    IMAGE_SIZE,
    LABELS,
    SEEN,
    TRAINING,
    UNSEEN,
    Picture,
    caption,
    draw_pictures,
    vocabulary,
)
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.text.text_config import CLIP_TEXT, TextConfig
from llm_compression.text.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer, write_word_tokenizer

WORDS: Final = vocabulary()
# A pre-norm tower gives the same at any scale of its residual stream, since every norm divides it out. Written at eight
# times, it breaks where the norms are on the stream itself, as large towers do; at one, a small tower hardly breaks.
STREAM_SCALE: Final = 8
_WRITES_STREAM: Final = (
    *(".out_proj.weight", ".out_proj.bias", ".fc2.weight", ".fc2.bias"),
    *("pre_layrnorm.weight", "pre_layrnorm.bias"),
    *("text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"),
)
CONFIG: Final = ClipConfig(
    TextConfig(
        model_type=CLIP_TEXT,
        vocab_size=len(WORDS) + 2,
        num_positions=20,
        hidden_size=64,
        num_layers=1,
        num_heads=4,
        intermediate_size=128,
        layer_norm_eps=1e-5,
        hidden_act="quick_gelu",
        pooling="eos",
        max_length=20,
        eos_token_id=len(WORDS) + 1,
        projection_dim=32,
    ),
    VisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        intermediate_size=256,
        projection_dim=32,
    ),
)


class Tower(nn.Module):
    """A tower in training: what VisionEncoder and TextEncoder compute, with weights that can change."""

    def __init__(self, config: VisionConfig | TextConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.transformer = InferenceCore(
            hidden_size=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=config.layer_norm_eps,
            activation=config.hidden_act,
            causal=isinstance(config, TextConfig),
        )
        self.position_embedding = nn.Parameter(0.02 * torch.randn(config.num_positions, width))
        self.last_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.projection = nn.Linear(width, config.dimension, bias=False)
        if isinstance(config, VisionConfig):
            self.patches = PatchConv2d(width, config.patch_size)
            self.cls_token = nn.Parameter(0.02 * torch.randn(width))
            self.pre_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        else:
            self.token_embedding = nn.Parameter(0.02 * torch.randn(config.vocab_size, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels (n, 3, S, S) or ids (n, tokens) to unit rows (n, dimension)."""
        if isinstance(self.config, VisionConfig):
            x = self.patches(inputs).flatten(2).transpose(1, 2)  # (n, patches, width)
            x = torch.cat((self.cls_token.expand(len(x), 1, -1), x), 1) + self.position_embedding
            x = self.transformer(self.pre_layernorm(x), first_token_only=True)[:, 0]
        else:
            x = F.embedding(inputs, self.token_embedding) + self.position_embedding[: inputs.shape[1]]
            # the end token has the largest id
            x = self.transformer(x)[torch.arange(len(inputs)), inputs.argmax(1)]
        return F.normalize(self.projection(self.last_layernorm(x)))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weights under their Hugging Face names."""
        is_vision = isinstance(self.config, VisionConfig)
        prefix = "vision_model." if is_vision else "text_model."
        yield f"{prefix}embeddings.position_embedding.weight", self.position_embedding
        if is_vision:
            yield f"{prefix}embeddings.class_embedding", self.cls_token
            yield f"{prefix}embeddings.patch_embedding.weight", self.patches.weight
            yield from _pair(f"{prefix}pre_layrnorm", self.pre_layernorm)
        else:
            yield f"{prefix}embeddings.token_embedding.weight", self.token_embedding
        for index, layer in enumerate(self.transformer.layers):
            assert isinstance(layer, TransformerLayer)
            for part, name in CLIP_LAYER_NAMES.items():
                if part not in ("q", "k", "v"):
                    yield from _pair(f"{prefix}encoder.layers.{index}.{name}", getattr(layer, part))
            for part, weight, bias in zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True):
                name = f"{prefix}encoder.layers.{index}.{CLIP_LAYER_NAMES[part]}"
                yield from ((f"{name}.weight", weight), (f"{name}.bias", bias))
        yield from _pair(f"{prefix}{'post_layernorm' if is_vision else 'final_layer_norm'}", self.last_layernorm)
        yield ("visual_projection.weight" if is_vision else "text_projection.weight"), self.projection.weight


def train(out: Path, seed: int, steps: int, batch_size: int, num_pictures: int) -> None:
    """Train, and write weights and tokenizer.

    Args:
        out: The directory to write.
        seed: Of everything.
        steps: Batches.
        batch_size: Pictures and captions in each.
        num_pictures: Pictures drawn once; noise and light change each time one is shown.
    """
    threads = torch.get_num_threads()
    # one thread adds in one order: the same seed gives the same weights whatever the number of processors
    torch.set_num_threads(1)
    try:
        _train(out, seed, steps, batch_size, num_pictures)
    finally:
        torch.set_num_threads(threads)


def _train(out: Path, seed: int, steps: int, batch_size: int, num_pictures: int) -> None:
    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_word_tokenizer(out / TOKENIZER_FILE, WORDS, "<start>", "<end>")
    tokenize = load_tokenizer(out / TOKENIZER_FILE, CONFIG.text.max_length, CONFIG.text.vocab_size)
    pictures = list(draw_pictures(num_pictures, seed, TRAINING))
    pool = torch.from_numpy(np.stack([np.asarray(picture.draw()) for picture in pictures])).permute(0, 3, 1, 2)
    vision, text = Tower(CONFIG.vision), Tower(CONFIG.text)
    logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    parameters = [*vision.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [*(p for p in parameters if p.dim() < 2), logit_scale], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.5e-3, total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(steps):
        chosen = torch.randint(len(pool), (batch_size,), generator=generator)
        batch = [pictures[i] for i in chosen.tolist()]
        captions, said = zip(*(caption(picture, rng) for picture in batch), strict=True)
        images, texts = vision(_pixels(pool[chosen], generator)), text(_padded(tokenize(captions)))
        logits = logit_scale.exp() * images @ texts.T
        loss = _loss(logits, _true(batch, said))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            logit_scale.clamp_(max=math.log(100))
        if (step + 1) % 100 == 0:
            right = [_accuracy(vision, text, tokenize, pairs) for pairs in (SEEN, sorted(UNSEEN))]
            seconds = time.perf_counter() - start
            shown = f"right {right[0]:.1%} of seen pairs, {right[1]:.1%} of unseen ones"
            print(f"step {step + 1:5}  loss {loss.item():.3f}  {shown}  {seconds:5.0f} s", flush=True)
    _write(out, vision, text, logit_scale, seed, steps)


def _accuracy(vision: Tower, text: Tower, tokenize: Tokenizer, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of pictures whose nearest label is theirs, of some that the training does not draw."""
    pictures = list(draw_pictures(240, -1, pairs))
    pixels = ImageProcessor(IMAGE_SIZE)([picture.draw() for picture in pictures])
    with torch.no_grad():
        labels = text(_padded(tokenize([f"a photo of a {label}" for label in LABELS])))
        best = (vision(pixels) @ labels.T).argmax(1).tolist()
    right = sum(LABELS[index] == picture.label for index, picture in zip(best, pictures, strict=True))
    return float(right) / len(pictures)


def _true(pictures: Sequence[Picture], said: Sequence[tuple[bool, ...]]) -> Tensor:
    """Which caption (column) is true of which picture (row)."""
    attributes = torch.tensor([picture.attributes for picture in pictures])
    same = attributes[:, None] == attributes[None]  # (pictures, captions, attributes)
    return (same | ~torch.tensor(said)[None]).all(2)


def _loss(logits: Tensor, true: Tensor) -> Tensor:
    """Cross entropy in both directions, to all that are true in equal shares."""
    rows = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True))
    return (rows + columns) / 2


def _pixels(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 pixels as the model's input, with other light and noise each time."""
    processor = ImageProcessor(IMAGE_SIZE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.mean, processor.std))
    light = 1 + 0.1 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    level = 0.05 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    noisy = pixels / 255 * light + level * torch.randn(pixels.shape, generator=generator)
    return (noisy.clamp(0, 1) - mean) / std


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _pair(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", module.get_parameter("weight")
    yield f"{name}.bias", module.get_parameter("bias")


def _write(out: Path, vision: Tower, text: Tower, logit_scale: Tensor, seed: int, steps: int) -> None:
    found = dict((*text.tensors(), ("logit_scale", logit_scale), *vision.tensors()))
    tokenizer_sha256 = hashlib.sha256((out / TOKENIZER_FILE).read_bytes()).hexdigest()
    metadata = WeightMetadata(
        config=CONFIG.to_dict(),
        preprocessing={
            "vision": ImageProcessor(IMAGE_SIZE).to_dict(),
            "text": {"tokenizer_sha256": tokenizer_sha256},
        },
        source={"name": "shapes", "revision": f"seed {seed}, {steps} steps", "format": "train_shapes"},
    )
    # whatever the order of the parameters, a weight file has that of its configuration
    tensors = (
        (name, (found[name].detach() * (STREAM_SCALE if name.endswith(_WRITES_STREAM) else 1)).to(torch.bfloat16))
        for name in CONFIG.expected_shapes()
    )
    report = write_weights(out / WEIGHTS_FILE, tensors, metadata)
    print(f"wrote {report.path}: {report.num_params:,} parameters, {report.file_bytes:,} bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.models.train_shapes",
        description="Train the small CLIP that ships with the package.",
        epilog="example: python -m llm_compression.models.train_shapes --out models/shapes",
    )
    parser.add_argument("--out", type=Path, default=shapes_model(), help="directory to write (default: the package's)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=24000, help="drawn for training (default: %(default)s)")
    given = parser.parse_args(arguments)
    train(given.out, given.seed, given.steps, given.batch_size, given.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
