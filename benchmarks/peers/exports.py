"""The seeded checkpoint in the formats that ONNX Runtime and OpenVINO read, made once beside the cached model."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_compression.files import whole_file
from llm_compression.harness.clip.models import CACHE_DIRECTORY, Model, prepare_model


def export(model: Model, say: Callable[[str], None]) -> tuple[Path, Path]:
    """The ONNX file and the OpenVINO file of a model, both float32 with a free batch size.

    Both come from transformers' own module in float32; OpenVINO rounds to bfloat16 itself when asked to.
    """
    folder = model.checkpoint.parent / "peers"
    onnx, openvino = folder / "model.onnx", folder / "model.xml"
    folder.mkdir(exist_ok=True)
    if not onnx.is_file():
        say(f"{model.variant}: exporting to ONNX")
        _export_onnx(model, onnx)
    if not openvino.is_file():
        say(f"{model.variant}: converting to OpenVINO's format")
        import openvino as ov

        # nothing is compressed: the default would round the weights to float16
        ov.save_model(ov.convert_model(onnx), openvino, compress_to_fp16=False)
    return onnx, openvino


def _export_onnx(model: Model, path: Path) -> None:
    import torch
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection.from_pretrained(model.checkpoint, dtype=torch.float32).eval()

    class Embeddings(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.tower(pixel_values=pixels).image_embeds
            return out

    pixels = torch.zeros(1, 3, model.image_size, model.image_size)
    with whole_file(path) as partial, warnings.catch_warnings():
        # the exporter by tracing is deprecated; the newer one needs onnxscript and gives the same graph here
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Embeddings(),
            (pixels,),
            str(partial),
            dynamo=False,
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_axes={"pixels": {0: "n"}, "embeddings": {0: "n"}},
            opset_version=17,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.peers.exports b16")
    parser.add_argument("variants", nargs="+")
    for variant in parser.parse_args(arguments).variants:
        export(prepare_model(variant, CACHE_DIRECTORY), print)
    return 0


if __name__ == "__main__":
    sys.exit(main())
