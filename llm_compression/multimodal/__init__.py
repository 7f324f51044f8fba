"""Images to embeddings, over `llm_compression.inference`."""
