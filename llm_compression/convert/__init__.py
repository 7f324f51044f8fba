"""Other people's checkpoints to weight files."""

from llm_compression.convert.converter import ConversionReport, convert_checkpoint

__all__ = ["ConversionReport", "convert_checkpoint"]
