"""Running a recipe: the `fit(context)` in a submission's folder, with its log and its checks around it."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import torchvision_fix
from bench.errors import InputError
from bench.store import new_folder
from bench.submission import MANIFEST, find_recipe, read_manifest
from bench.types import Collection, FitContext

LOG_FILE = "fit.jsonl"


def run_fit(
    recipe: str,
    train: Collection,
    validation: Collection | None,
    output: Path,
    seed: int,
    epochs: int | None,
    device: str,
    overwrite: bool,
    say: Callable[[str], None],
) -> None:
    """Fits `recipe` and puts the finished submission folder at `output`; until then `output` is not touched.

    Raises:
        UsageError: there is no such recipe, or `output` is not empty.
        InputError: the recipe wrote no valid submission.
    """
    source = find_recipe(recipe)
    with new_folder(output, MANIFEST, overwrite) as unfinished:
        context = FitContext(
            train=train,
            validation=validation,
            output=unfinished,
            seed=seed,
            epochs=epochs,
            device=device,
            report=_Reporter(unfinished / LOG_FILE, say),
        )
        _load_fit(source)(context)
        _state_training(unfinished / MANIFEST, train.name)
        read_manifest(unfinished)
        if not (unfinished / "model.py").is_file():
            raise InputError(f"recipe {recipe} wrote no model.py; expected a submission folder.")


def _state_training(manifest: Path, collection: str) -> None:
    """Writes what the weights have seen into a manifest, in place of what the recipe's own file says."""
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines() if not line.startswith("trained_on")]
    lines.insert(1, f"trained_on = {json.dumps([collection])}")
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")


class _Reporter:
    """Writes a recipe's figures as JSON lines, and says them with the time that is left."""

    def __init__(self, log: Path, say: Callable[[str], None]) -> None:
        self._log, self._say = log, say
        self._started = self._last_epoch = time.monotonic()

    def __call__(self, figures: dict[str, float]) -> None:
        now = time.monotonic()
        spent = now - self._started
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**figures, "seconds": round(spent, 1)}) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "epochs")
        left = ""
        if "epoch" in figures and "epochs" in figures:
            left = f"  {(now - self._last_epoch) * (figures['epochs'] - figures['epoch']):.0f} s left"
        self._last_epoch = now
        self._say(f"{shown}  {spent:.0f} s{left}")


def _load_fit(source: Path) -> Callable[[FitContext], None]:
    torchvision_fix.install()
    spec = importlib.util.spec_from_file_location(f"rove_recipe_{source.parent.name}", source)
    if spec is None or spec.loader is None:
        raise InputError(f"{source} is no Python file.")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "fit", None)):
        raise InputError(f"{source} defines no fit(context).")
    return module.fit
