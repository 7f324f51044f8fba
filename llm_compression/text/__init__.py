"""Texts: tokenizer, encoder and engine, over the core of `inference`."""
