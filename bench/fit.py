"""Running a recipe: the `fit(context)` in its folder, with its state, its log and its report around it."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import torchvision_fix
from bench.cluster import connect_cluster
from bench.errors import InputError, UsageError
from bench.fit_data import FitData, saw_evaluation_data
from bench.fit_report import Fitted, make_card, make_manifest, make_model, manifest_toml, write_plot
from bench.fit_search import check_search, run_search
from bench.fit_state import LOG_FILE, FitState, open_state
from bench.recipes import Recipe
from bench.records import Manifest
from bench.shifted import source_digest
from bench.store import new_folder
from bench.submission import (
    MANIFEST,
    Submission,
    digest_own,
    digest_recipe,
    find_recipe,
    find_submission,
    list_recipes,
    read_manifest,
    shipped_submissions,
)
from bench.types import Base, ClusterSettings, FitContext, FitFacts

PLOT_FILE, CARD_FILE, MODEL_FILE = "fit.svg", "README.md", "model.py"
Say = Callable[[str], None]


@dataclass(frozen=True)
class FitSettings:
    """What decides a fit's weights, together with its data.

    Args:
        recipe: that runs.
        base: that it starts from; None for a recipe that needs none.
        args: of the recipe, complete.
        seed: same seed, same weights on the same machine.
        epochs: passes over the training images; None is the recipe's default.
        budget_s: seconds of training after which it ends in good order; None is no limit.
        device: torch's name of the device.
        search: whether the values of the recipe's `SEARCH` are tried, in place of those in `args`.
        cluster: which the recipe may share its work out to; None for this machine alone.
    """

    recipe: Recipe
    base: Submission | None
    args: Mapping[str, str]
    seed: int = 0
    epochs: int | None = None
    budget_s: float | None = None
    device: str = "cpu"
    search: bool = False
    cluster: ClusterSettings | None = None


def choose_recipe(
    name: str, base: str | None, base_args: Mapping[str, str], args: Mapping[str, str], search: bool = False
) -> FitSettings:
    """A recipe with its base and its arguments, and everything else at its default.

    Args:
        name: of the recipe.
        base: a shipped submission's name, or a folder; None if none is given.
        base_args: over those of its manifest.
        args: over the defaults in the recipe's `ARGS`.
        search: whether the values of its `SEARCH` are to be tried.

    Raises:
        UsageError: there is no such recipe or base, the recipe takes no such argument, a base is missing or in the way,
            or there is nothing to search.
        InputError: the base's manifest or files are not as they must be.
    """
    recipe = find_recipe(name)
    if unknown := next((key for key in args if key not in recipe.args), None):
        known = ", ".join(recipe.args) or "none"
        raise UsageError(f"recipe {name} takes no --recipe-arg {unknown}; it takes: {known}.")
    if recipe.needs_base and base is None:
        raise UsageError(f"recipe {name} starts from a submission: give --base SUBMISSION, such as --base tiny.")
    if not recipe.needs_base and (base is not None or base_args):
        raise UsageError(f"recipe {name} makes its model from nothing and takes no --base; leave it out.")
    if search:
        check_search(recipe, args)
    found = None if base is None else _find_base(base, base_args)
    return FitSettings(recipe, found, {**recipe.args, **args}, search=search)


def run_fit(
    settings: FitSettings,
    data: FitData,
    output: Path,
    say: Say,
    *,
    name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    plot: bool = False,
) -> None:
    """Fits a recipe and puts the finished submission folder at `output`; until then `output` is not touched.

    Args:
        settings: what to fit.
        data: what to learn from.
        output: the submission folder to make.
        say: takes lines for a person.
        name: the submission's; None is BASE-RECIPE, or the recipe's own.
        resume: go on from the state that an interrupted fit of the same inputs has left beside `output`.
        overwrite: whether `output` may hold something.
        plot: also draw the log.

    Raises:
        UsageError: `output` is not empty, the state to resume is of another fit, or the recipe takes no budget, no
            generic collection or no cluster.
        InputError: the recipe wrote no valid submission.
    """
    if settings.budget_s is not None and not settings.recipe.needs_base:
        raise UsageError(f"recipe {settings.recipe.name} keeps no --budget; give --epochs.")
    if data.generic is not None and not settings.recipe.takes_generic:
        raise UsageError(f"recipe {settings.recipe.name} keeps nothing in memory and takes no --generic; leave it out.")
    if settings.cluster and not settings.recipe.shares_out:
        sharing = ", ".join(name for name, recipe in list_recipes().items() if recipe.shares_out)
        raise UsageError(
            f"recipe {settings.recipe.name} trains its towers on one machine and takes no --executor ray; those that "
            f"encode with frozen towers first do: {sharing}."
        )
    _check_name(name)
    with new_folder(output, MANIFEST, overwrite) as unfinished:
        fitted = _describe(settings, data, name, say)
        if settings.base is not None:
            make_manifest(fitted)  # what cannot be written is found before the training
        with open_state(output, _key(settings, data, fitted.data_sha256), resume, say) as state:
            if settings.search:
                fitted, log = _search(settings, data, fitted, unfinished, state, say)
            else:
                fitted, log = replace(fitted, facts=_call(settings, data, unfinished, state, say)), state.log
            _finish(unfinished, fitted, log)
        if plot and not write_plot(unfinished / LOG_FILE, unfinished / PLOT_FILE):
            say("the recipe logs no figures by epoch: there is nothing to plot.")
    state.discard()


def time_left(figures: Mapping[str, float], spent_s: float, budget_s: float | None) -> float | None:
    """Seconds until a fit ends, by what its epochs took so far and by its budget; None if neither is known."""
    done, whole = figures.get("epoch", 0), figures.get("epochs", 0)
    estimates = [spent_s / done * (whole - done)] if 0 < done <= whole else []
    if budget_s is not None:
        estimates.append(max(0.0, budget_s - spent_s))
    return min(estimates, default=None)


def _find_base(reference: str, args: Mapping[str, str]) -> Submission:
    """The submission that `reference` names, if it is a folder that can be copied or named.

    Raises:
        UsageError: there is none, or it is a function in a file or an entry point.
    """
    if reference.rpartition(":")[0].endswith(".py"):
        raise UsageError(
            f"--base {reference} is a function in a file; expected a shipped submission's name or a folder, because a "
            "fitted submission keeps its base's files with it. `rove new NAME` makes a folder."
        )
    found = find_submission(reference, args)
    if found.import_name or not found.is_folder:
        raise UsageError(
            f"--base {reference} is an entry point of an installed package; expected a shipped submission's name or a "
            f"folder, because a fitted submission keeps its base's files with it. Give its folder: {found.folder}."
        )
    return found


def _to_base(found: Submission | None) -> Base | None:
    if found is None:
        return None
    return Base(found.name, found.folder, found.args, shipped=found.folder in shipped_submissions().values())


def _check_name(name: str | None) -> None:
    if name is not None:
        try:
            Manifest(name=name)
        except ValueError:
            raise UsageError(
                f"--name '{name}' is no name for a submission; expected lower-case letters, digits, '-', '_' and '.'."
            ) from None


def _describe(settings: FitSettings, data: FitData, name: str | None, say: Say) -> Fitted:
    for part in data.parts:
        say(f"reading {len(part.train.images):,} images of {part.train.name}.")
    return Fitted(
        recipe=settings.recipe,
        base=settings.base,
        args=settings.args,
        seed=settings.seed,
        data=data,
        data_sha256=[source_digest(part.train) for part in data.parts],
        saw_evaluation_data=saw_evaluation_data(data, settings.base.manifest if settings.base else None),
        name=name or "",
    )


def _key(settings: FitSettings, data: FitData, data_sha256: Sequence[str]) -> dict[str, Any]:
    """Everything that decides the weights, by a name that a person understands."""
    base, generic = settings.base, data.generic
    return {
        "recipe": settings.recipe.name,
        "recipe's version": settings.recipe.version,
        "base": base and base.name,
        "base's arguments": base and dict(base.args),
        "base's files": base and digest_own(base),
        "code of the recipe": digest_recipe(settings.recipe),
        "training collection": data.train.name,
        "training data": data_sha256[0],
        "validation": data.validation and data.validation.name,
        "validation data": data.validation and source_digest(data.validation),
        "generic collection": generic and generic.train.name,
        "generic data": data_sha256[1] if generic else None,
        "generic validation": generic and generic.validation and generic.validation.name,
        "generic validation data": generic and generic.validation and source_digest(generic.validation),
        "recipe's arguments": dict(settings.args),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "budget in seconds": settings.budget_s,
        "device": settings.device,
        "search": {name: list(values) for name, values in settings.recipe.search.items()} if settings.search else None,
    }


def _search(
    settings: FitSettings, data: FitData, fitted: Fitted, folder: Path, state: FitState, say: Say
) -> tuple[Fitted, Path]:
    """Fills `folder` with the best of a search, and says what it is and where its log lies."""

    def fit_one(args: Mapping[str, str], budget_s: float | None, made: Path, own: FitState) -> FitFacts | None:
        return _call(replace(settings, args={**settings.args, **args}, budget_s=budget_s), data, made, own, say)

    best, tried = run_search(settings.recipe, settings.budget_s, state, fit_one, say)
    shutil.copytree(best.folder, folder, dirs_exist_ok=True)
    return replace(fitted, args={**settings.args, **best.args}, facts=best.facts, tried=tried), best.log


def _call(settings: FitSettings, data: FitData, folder: Path, state: FitState, say: Say) -> FitFacts | None:
    """Runs the recipe's `fit(context)`, which fills `folder`."""
    module = _load_recipe(settings.recipe.source)
    context = FitContext(
        train=data.train,
        validation=data.validation,
        output=folder,
        seed=settings.seed,
        epochs=settings.epochs,
        args=settings.args,
        device=settings.device,
        report=_Reporter(state, settings.budget_s, say),
        checkpoint=state,
        base=_to_base(settings.base),
        budget_s=settings.budget_s,
        generic=data.generic.train if data.generic else None,
        generic_validation=data.generic.validation if data.generic else None,
    )
    with connect_cluster(settings.cluster, settings.device) as cluster:
        return module.fit(replace(context, map=None if cluster is None else cluster.map_in_order))


def _finish(folder: Path, fitted: Fitted, log: Path) -> None:
    """Adds to what a recipe wrote whatever a submission folder needs besides."""
    own = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    manifest = make_manifest(fitted, own)
    (folder / MANIFEST).write_text(manifest_toml(manifest), encoding="utf-8")
    if log.is_file():
        (folder / LOG_FILE).write_bytes(log.read_bytes())
    if fitted.base is not None:
        _write_new(folder / MODEL_FILE, make_model(manifest, fitted.recipe))
        _write_new(folder / CARD_FILE, make_card(manifest, fitted))
    if read_manifest(folder) != manifest or not (folder / MODEL_FILE).is_file():
        raise InputError(f"recipe {fitted.recipe.name} wrote no {MODEL_FILE}; expected a submission folder.")


def _write_new(path: Path, text: str) -> None:
    """Writes a file unless the recipe has written one."""
    if not path.exists():
        path.write_text(text, encoding="utf-8")


class _Reporter:
    """Logs a recipe's figures, and says them with the time that is left."""

    def __init__(self, state: FitState, budget_s: float | None, say: Say) -> None:
        self._state, self._budget_s, self._say = state, budget_s, say

    def __call__(self, figures: dict[str, float]) -> None:
        self._state.append(figures)
        spent = self._state.seconds
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "epochs")
        left = time_left(figures, spent, self._budget_s)
        self._say(f"{shown}  {spent:.0f} s" + (f"  {math.ceil(left)} s left" if left else ""))


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
