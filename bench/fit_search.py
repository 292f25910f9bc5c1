"""A small search: every combination of a recipe's `SEARCH` is fitted, and the best by validation is kept.

Each combination has a state of its own in the folder of the search's state, so an interrupted search goes on in the
middle of one; what each has come to is the checkpoint of the search. No test split is ever looked at.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.errors import InputError, UsageError
from bench.fit_state import LOG_FILE, FitState
from bench.recipes import Recipe
from bench.records import TriedSetting
from bench.types import FitFacts

MADE_FOLDER = "made"
Say = Callable[[str], None]
FitOne = Callable[[Mapping[str, str], float | None, Path, FitState], FitFacts | None]


@dataclass(frozen=True)
class Trial:
    """One combination.

    Args:
        args: of the recipe, those that the search varies.
        state: where the state of its fit lies, and what it has made.
        facts: what its fit reports; None before it has ended.
    """

    args: Mapping[str, str]
    state: Path
    facts: FitFacts | None = None

    @property
    def folder(self) -> Path:
        """What the recipe writes."""
        return self.state / MADE_FOLDER

    @property
    def log(self) -> Path:
        """The log of its fit."""
        return self.state / LOG_FILE

    @property
    def score(self) -> float:
        """What it is chosen by, in percent; -1 before it has ended."""
        return -1.0 if self.facts is None else self.facts.validation_r1


def check_search(recipe: Recipe, args: Mapping[str, str]) -> None:
    """Makes sure that there is something to search, and that no argument is both given and searched.

    Raises:
        UsageError: it is otherwise.
    """
    if not recipe.search:
        raise UsageError(f"recipe {recipe.name} states no SEARCH: leave --search out, and set --recipe-arg yourself.")
    if both := [name for name in recipe.search if name in args]:
        values = ", ".join(recipe.search[both[0]])
        raise UsageError(
            f"--search tries {both[0]} at {values}; leave --recipe-arg {both[0]} out, or --search, to fit it alone."
        )


def combinations(search: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every choice of one value for each argument, the last argument's varying fastest."""
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def run_search(
    recipe: Recipe, budget_s: float | None, state: FitState, fit_one: FitOne, say: Say
) -> tuple[Trial, list[TriedSetting]]:
    """Fits every combination that has not been fitted before an interruption.

    Args:
        recipe: with a `SEARCH`.
        budget_s: of the whole search, of which each combination has an equal part; None is no limit.
        state: of the whole search.
        fit_one: runs the recipe with some arguments, within some seconds, into a folder, with a state.
        say: takes lines for a person.

    Returns:
        the one with the highest validation figure, the first of them if several have it, and all that were tried.

    Raises:
        InputError: the recipe reports no such figure.
    """
    choices = combinations(recipe.search)
    done = _read_done(state)
    trials = [Trial(args, state.folder / f"{n}", done.get(n)) for n, args in enumerate(choices)]
    part_s = None if budget_s is None else budget_s / len(trials)
    for n, trial in enumerate(trials):
        said = " ".join(f"{name}={value}" for name, value in trial.args.items())
        say(f"setting {n + 1} of {len(trials)}: {said}{', fitted before the interruption' if trial.facts else ''}.")
        if trial.facts is None:
            done[n] = _fit(recipe, trial, part_s, fit_one, say)
            trials[n] = Trial(trial.args, trial.state, done[n])
            _write_done(state, done)
    best = max(trials, key=lambda trial: trial.score)  # of equals the first
    tried = [TriedSetting(args=dict(trial.args), validation_r1=round(trial.score, 4)) for trial in trials]
    return best, tried


def _fit(recipe: Recipe, trial: Trial, budget_s: float | None, fit_one: FitOne, say: Say) -> FitFacts:
    own = FitState(trial.state, dict(trial.args))
    trial.state.mkdir(exist_ok=True)
    own.begin(own.has_checkpoint, say)
    shutil.rmtree(trial.folder, ignore_errors=True)
    trial.folder.mkdir()
    facts = fit_one(trial.args, budget_s, trial.folder, own)
    if facts is None:
        raise InputError(f"recipe {recipe.name} reports no validation figure to search by; expected FitFacts of fit().")
    return facts


def _read_done(state: FitState) -> dict[int, FitFacts]:
    """What the combinations that ended reported; where there is no state to go on from, what lies there is removed."""
    if (written := state.read()) is not None:
        return {int(n): FitFacts(**facts) for n, facts in json.loads(written).items()}
    for folder in state.folder.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    _write_done(state, {})
    return {}


def _write_done(state: FitState, done: Mapping[int, FitFacts]) -> None:
    state.write(json.dumps({n: asdict(facts) for n, facts in done.items()}).encode())
