"""Texts confirmed beside their proofs: ``confirmed.json`` of a spec holds a hash of what a proof was last held against.

A criterion, a property or a row of a table that is not the confirmed one is listed
by `changes`. Whoever changed it looks at its proof again and renews the hashes:
``python -m llm_compression.harness.spec.confirm``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.spec.parser import SPECS_DIRECTORY, Spec, SpecError, read_specs

CONFIRMED_FILE: Final = "confirmed.json"


def texts(spec: Spec) -> dict[str, str]:
    """What is confirmed: a hash of each criterion, property, and row of a table, by kind and id."""
    found = {f"criterion {each.id}": each.text for each in spec.criteria}
    for each in spec.properties:
        found[f"property {each.number}"] = "\n".join((each.title, each.text, *each.validates))
    found |= {f"gate {each.id}": "\n".join(map(str, astuple(each))) for each in spec.gates}
    found |= {f"floor {each.metric}": "\n".join(map(str, astuple(each))) for each in spec.floors}
    for reference in spec.references:
        found[f"reference {reference.metric} {reference.model}"] = "\n".join(map(str, astuple(reference)))
    found |= {f"condition {each.quantity}": "\n".join(map(str, astuple(each))) for each in spec.conditions}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in found.items()}


def changes(spec: Spec, root: Path) -> list[str]:
    """What is not as it was confirmed, a sentence each.

    Raises:
        SpecError: The file of hashes is there but cannot be read.
    """
    path = root / SPECS_DIRECTORY / spec.name / CONFIRMED_FILE
    try:
        confirmed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise SpecError(path, 0, f"cannot be read: {error}") from error
    if not isinstance(confirmed, dict):
        raise SpecError(path, 0, f"{type(confirmed).__name__}, expected an object of hashes")
    now = texts(spec)
    found = []
    for name in sorted(now.keys() | confirmed.keys(), key=[*now, *confirmed].index):
        if name not in confirmed:
            found.append(f"{name} was never confirmed beside a proof")
        elif name not in now:
            found.append(f"{name} was confirmed and is gone")
        elif now[name] != confirmed[name]:
            found.append(f"{name} changed since its proof was confirmed")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Confirm every text of every spec as it stands, and print what that changed; 1 where a spec cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.spec.confirm",
        description="Confirm that the proofs of each spec still prove what it says now. Look at them first.",
        epilog="example: python -m llm_compression.harness.spec.confirm .",
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(), metavar="ROOT", help="the checkout (default: .)")
    root = parser.parse_args(arguments).root
    try:
        found = [(spec, changes(spec, root)) for spec in read_specs(root)]
    except LlmCompressionError as error:
        print(error, file=sys.stderr)
        return 1
    for spec, sentences in found:
        path = root / SPECS_DIRECTORY / spec.name / CONFIRMED_FILE
        path.write_text(json.dumps(texts(spec), indent=1) + "\n", encoding="utf-8")
        print(*(f"{spec.name}: {each}" for each in sentences), f"{spec.name}: confirmed", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
