"""Data files of installed packages, found without importing the package that carries them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.errors import MissingError


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
