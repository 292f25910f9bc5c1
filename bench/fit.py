"""Running a recipe: the `fit(context)` in a submission's folder, with its log and its checks around it."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import torchvision_fix
from bench.errors import InputError, UsageError
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
    args: Mapping[str, str],
    name: str | None,
    device: str,
    overwrite: bool,
    say: Callable[[str], None],
) -> None:
    """Fits `recipe` and puts the finished submission folder at `output`; until then `output` is not touched.

    Args:
        recipe: its name.
        train: the collection to learn from.
        validation: for choices; None lets the recipe hold out a part of `train`.
        output: the submission folder to make.
        seed: same seed, same weights on the same machine.
        epochs: passes over `train`; None is the recipe's default.
        args: over the defaults in the recipe's `ARGS`.
        name: the submission's; None is the recipe's.
        device: torch's name of the device.
        overwrite: whether `output` may hold something.
        say: takes lines for a person.

    Raises:
        UsageError: there is no such recipe, it does not take such an argument, or `output` is not empty.
        InputError: the recipe wrote no valid submission.
    """
    module = _load_recipe(find_recipe(recipe))
    defaults: Mapping[str, str] = getattr(module, "ARGS", {})
    unknown = next((key for key in args if key not in defaults), None)
    if unknown:
        known = ", ".join(defaults) or "none"
        raise UsageError(f"recipe {recipe} takes no --recipe-arg {unknown}; it takes: {known}.")
    with new_folder(output, MANIFEST, overwrite) as unfinished:
        context = FitContext(
            train=train,
            validation=validation,
            output=unfinished,
            seed=seed,
            epochs=epochs,
            args={**defaults, **args},
            device=device,
            report=_Reporter(unfinished / LOG_FILE, say),
        )
        module.fit(context)
        stated = {"trained_on": [train.name]} | ({"name": name} if name else {})
        _state(unfinished / MANIFEST, stated)
        read_manifest(unfinished)
        if not (unfinished / "model.py").is_file():
            raise InputError(f"recipe {recipe} wrote no model.py; expected a submission folder.")


def _state(manifest: Path, facts: Mapping[str, str | list[str]]) -> None:
    """Writes facts of this fit into a manifest, in place of what the recipe's own file says."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in facts]
    stated = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    manifest.write_text("\n".join([*stated, *kept]) + "\n", encoding="utf-8")


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


def _load_recipe(source: Path) -> Any:
    torchvision_fix.install()
    spec = importlib.util.spec_from_file_location(f"rove_recipe_{source.parent.name}", source)
    if spec is None or spec.loader is None:
        raise InputError(f"{source} is no Python file.")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "fit", None)):
        raise InputError(f"{source} defines no fit(context).")
    return module
