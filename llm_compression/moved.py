"""Modules that went elsewhere: for one release they are found, with a DeprecationWarning, under their old names too."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any, Final

# Old name to new, below `llm_compression`; to be emptied with the next release.
MOVED: Final = {
    "llm_compression.harness.confirm": "llm_compression.harness.spec.confirm",
    "llm_compression.inference.arrow_engine": "llm_compression.text.arrow_engine",
    "llm_compression.inference.arrow_views": "llm_compression.columns",
    "llm_compression.inference.series": "llm_compression.columns",
    "llm_compression.inference.text_config": "llm_compression.text.text_config",
    "llm_compression.inference.text_encoder": "llm_compression.text.text_encoder",
    "llm_compression.inference.text_inputs": "llm_compression.text.text_inputs",
    "llm_compression.inference.tokenizer": "llm_compression.text.tokenizer",
}


class _Moved:
    """Python asks it for a module that nothing else has found; the old name then stands for the new module itself."""

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None  # type: ignore[arg-type]  # needs no base class

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        # Python leaves its own frames of an import out, so that this is the line that imports
        warnings.warn(_message(name), DeprecationWarning, stacklevel=2)
        sys.modules[name] = importlib.import_module(MOVED[name])

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        # shown: Python hides a DeprecationWarning of any other module
        warnings.warn_explicit(_message(fullname), DeprecationWarning, f"python -m {fullname}", 1, "__main__")
        spec = importlib.util.find_spec(MOVED[fullname])
        code: CodeType | None = spec.loader.get_code(spec.name) if spec is not None else None  # type: ignore[union-attr]  # a file's loader has it
        return code


def _message(name: str) -> str:
    return f"{name} is now {MOVED[name]}; the old name works for one release"


def install() -> None:
    """Have Python ask for old names; once in a process."""
    if not any(isinstance(each, _Moved) for each in sys.meta_path):
        sys.meta_path.append(_Moved())
