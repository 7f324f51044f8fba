"""Wrote the frozen file of format version 1 beside it, from the tensors of the earlier layout; read forever.

Run it only in a copy: a file that is written anew proves nothing about the files that are out there.
"""

from pathlib import Path

from llm_compression import ImageProcessor, VisionConfig, WeightLoader
from llm_compression.inference.weight_format import WeightMetadata, write_weights

HERE = Path(__file__).parent

earlier = WeightLoader(HERE.parent / "earlier_layout")
assert earlier.config is not None
config = VisionConfig.from_dict(earlier.config)
source = {"name": "earlier_layout", "revision": None, "sha256": "0" * 64}
metadata = WeightMetadata(config.to_dict(), ImageProcessor(config.image_size).to_dict(), source)
write_weights(HERE / "weights.parquet", earlier.stream(), metadata)
