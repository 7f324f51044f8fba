"""`python -m llm_compression`: the same as the `llm-compression` command."""

from llm_compression.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
