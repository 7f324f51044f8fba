"""Wrote the frozen example of the earlier layout beside it; kept to show what such a file is. Run it only in a copy.

Plain pyarrow, nothing of this package: five columns, ``dtype`` with PyTorch's prefix, no metadata of ours. The expected
embeddings are those of transformers for the same float16 weights, computed in float32.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

HERE = Path(__file__).parent
SIZES = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}

torch.manual_seed(0)
model = CLIPVisionModelWithProjection(
    CLIPVisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        projection_dim=8,
        hidden_act="quick_gelu",
    )
).eval()
rows = []
with torch.no_grad():
    for name, parameter in model.named_parameters():
        # away from the zeros and ones that a new model has, so that a tensor that is not read shows
        parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape)).half().float())
        data = parameter.half().numpy().tobytes()
        rows.append((name, list(parameter.shape), "torch.float16", data, parameter.numel()))
    pixels = (
        torch.from_numpy(np.load(HERE / "pixels.npy")) if (HERE / "pixels.npy").exists() else torch.randn(3, 3, 16, 16)
    )
    expected = model(pixel_values=pixels).image_embeds
names, shapes, dtypes, datas, counts = zip(*rows, strict=True)
table = pa.table(
    {
        "layer_name": pa.array(names, pa.string()),
        "shape": pa.array(shapes, pa.list_(pa.int64())),
        "dtype": pa.array(dtypes, pa.string()),
        "data": pa.array(datas, pa.binary()),
        "num_params": pa.array(counts, pa.int64()),
    }
)
pq.write_table(table, HERE / "weights.parquet", compression="zstd")
np.save(HERE / "pixels.npy", pixels.numpy())
np.save(HERE / "expected.npy", expected.numpy())
config = {**SIZES, "projection_dim": 8, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
(HERE / "config.json").write_text(json.dumps(config, indent=1) + "\n")
