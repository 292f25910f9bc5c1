"""`rove fit --search` and `--generic`: what is kept, going on after an interruption, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.data.registry import load_collection
from bench.errors import InputError, UsageError
from bench.fit import FitSettings, choose_recipe, run_fit
from bench.fit_data import FitData, load_fit_data, saw_evaluation_data
from bench.fit_search import combinations
from bench.fit_state import LOG_FILE, FitState, state_folder
from bench.recipes import read_recipe
from bench.submission import find_submission, read_manifest

# Validation is best at a=2, b=x, and there again at a=3, b=x; `calls.txt` counts the fits that were begun.
TOY = '''
"""Is better with some arguments than with others."""

from pathlib import Path

from bench.types import FitFacts

ARGS = {"a": "1", "b": "x", "c": "0"}
NEEDS_BASE = True
TAKES_GENERIC = True
SEARCH = {"a": ["1", "2", "3"], "b": ["x", "y"]}
R1 = {"1x": 20.0, "1y": 30.0, "2x": 40.0, "2y": 10.0, "3x": 40.0, "3y": 0.0}


def fit(context):
    tag = context.args["a"] + context.args["b"]
    with (Path(__file__).parent / "calls.txt").open("a") as calls:
        calls.write(f"{tag} {context.budget_s} {context.generic and context.generic.name}\\n")
    half = context.checkpoint.read() is not None
    context.report({"epoch": 1, "epochs": 2, "validation_r1": 1.0})
    context.checkpoint.write(tag.encode())
    context.report({"epoch": 2, "epochs": 2, "validation_r1": R1[tag]})
    (context.output / "weights.txt").write_text(f"{tag} {half}")
    return FitFacts(100, 5, 7, False, 2.0, 4, 1.5, None, R1[tag], 10.0)
'''


@pytest.fixture(scope="module")
def data() -> FitData:
    return FitData(load_collection("scenes/train").head(4), load_collection("scenes/val").head(2))


@pytest.fixture
def toy(tmp_path: Path) -> FitSettings:
    source = tmp_path / "toy" / "fit.py"
    source.parent.mkdir()
    source.write_text(TOY, encoding="utf-8")
    recipe = read_recipe(source)
    return FitSettings(recipe, find_submission("tiny"), recipe.args, search=True)


def say_nothing(line: str) -> None:
    """Takes a line for a person."""


def calls_of(settings: FitSettings) -> list[str]:
    return (settings.recipe.source.parent / "calls.txt").read_text().splitlines()


def test_every_combination_is_tried_and_the_best_by_validation_is_kept(
    toy: FitSettings, data: FitData, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_fit(replace(toy, budget_s=60.0), data, output, say_nothing)
    assert [line.split()[:2] for line in calls_of(toy)] == [
        [a + b, "10.0"] for a, b in itertools.product("123", "xy")
    ]  # an equal part of the budget each
    assert (output / "weights.txt").read_text() == "2x False"
    made = read_manifest(output).fit
    assert made is not None
    assert (made.args, made.validation_r1) == ({"a": "2", "b": "x", "c": "0"}, 40.0)
    found = {one.args["a"] + one.args["b"]: one.validation_r1 for one in made.tried}
    assert found == {"1x": 20.0, "1y": 30.0, "2x": 40.0, "2y": 10.0, "3x": 40.0, "3y": 0.0}
    assert "`a=1` `b=y`: 30.0 %" in (output / "README.md").read_text()
    assert [json.loads(line)["validation_r1"] for line in (output / LOG_FILE).read_text().splitlines()] == [1.0, 40.0]
    assert not state_folder(output).exists()


def interrupt(settings: FitSettings, data: FitData, output: Path, n_reports: int) -> None:
    """Runs a fit that is interrupted before the figures of that number are logged."""
    append, left = FitState.append, [n_reports]

    def interrupted(self: FitState, figures: dict[str, float]) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        append(self, figures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitState, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_fit(settings, data, output, say_nothing)


@pytest.mark.parametrize(("n_reports", "winner"), [(6, "2x True"), (1, "2x False")])
def test_an_interrupted_search_goes_on_in_the_middle_of_a_setting(
    toy: FitSettings, data: FitData, tmp_path: Path, n_reports: int, winner: str
) -> None:
    output = tmp_path / "out"
    interrupt(toy, data, output, n_reports)
    begun = len(calls_of(toy))
    assert not output.exists()
    said: list[str] = []
    run_fit(toy, data, output, said.append, resume=True)
    assert len(calls_of(toy)) == 6 + 1  # one of them twice
    assert sum("fitted before the interruption" in line for line in said) == begun - 1
    assert (output / "weights.txt").read_text() == winner
    made = read_manifest(output).fit
    assert made is not None
    assert [one.validation_r1 for one in made.tried] == [20.0, 30.0, 40.0, 10.0, 40.0, 0.0]


def test_without_resume_nothing_of_an_interrupted_search_is_used(
    toy: FitSettings, data: FitData, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    interrupt(toy, data, output, 6)
    with pytest.raises(UsageError, match="search was a="):
        run_fit(replace(toy, search=False), data, output, say_nothing, resume=True)
    run_fit(toy, data, output, say_nothing)
    assert len(calls_of(toy)) == 3 + 6
    assert (output / "weights.txt").read_text() == "2x False"


def test_combinations_are_those_of_the_product() -> None:
    assert combinations({"a": ["1", "2"], "b": ["x"]}) == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]


def test_a_search_needs_something_to_search() -> None:
    with pytest.raises(UsageError, match="recipe full states no SEARCH"):
        choose_recipe("full", "tiny", {}, {}, search=True)
    with pytest.raises(UsageError, match=r"--search tries scale at 0\.1, 0\.3, 0\.6; leave --recipe-arg scale out"):
        choose_recipe("mwa", "tiny", {}, {"scale": "0.2"}, search=True)
    assert choose_recipe("mwa", "tiny", {}, {"rank": "2"}, search=True).search


def test_a_recipe_that_reports_nothing_cannot_be_searched(toy: FitSettings, data: FitData, tmp_path: Path) -> None:
    toy.recipe.source.write_text("def fit(context):\n    return None\n")
    with pytest.raises(InputError, match="reports no validation figure"):
        run_fit(toy, data, tmp_path / "out", say_nothing)


@pytest.mark.parametrize("text", ['{"d": ["1"]}', '{"a": "1"}', '{"a": []}', '{"a": [1]}', '["a"]'])
def test_a_search_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    source = tmp_path / "fit.py"
    source.write_text(f'"""A recipe."""\nARGS = {{"a": "1"}}\nSEARCH = {text}\n')
    with pytest.raises(InputError, match="expected a list of strings for some of its ARGS"):
        read_recipe(source)


def test_a_generic_collection_is_given_to_the_recipe_and_stated(
    toy: FitSettings, data: FitData, tmp_path: Path
) -> None:
    generic = FitData(load_collection("scenes-night/val").head(3), license="free")
    output = tmp_path / "out"
    run_fit(replace(toy, search=False), replace(data, generic=generic), output, say_nothing)
    assert calls_of(toy) == ["1x None scenes-night/val"]
    manifest = read_manifest(output)
    assert manifest.fit is not None
    assert manifest.trained_on == ["scenes/train", "scenes-night/val"]
    assert [(one.name, one.n_images) for one in manifest.fit.data] == [("scenes/train", 4), ("scenes-night/val", 3)]
    assert manifest.fit.validation == "scenes/val and held out"
    card = (output / "README.md").read_text()
    assert (
        f"| Not to be forgotten | scenes-night/val: 3 images, 15 captions, sha256 {manifest.fit.data[1].sha256}" in card
    )
    assert "| Licence of these data | free |" in card


def test_the_state_of_a_fit_with_other_generic_images_is_not_resumed(
    toy: FitSettings, data: FitData, tmp_path: Path
) -> None:
    output, night = tmp_path / "out", load_collection("scenes-night/val")
    interrupt(toy, replace(data, generic=FitData(night.head(3))), output, 2)
    with pytest.raises(UsageError, match="other generic data"):
        run_fit(toy, replace(data, generic=FitData(night.head(2))), output, say_nothing, resume=True)


def test_a_recipe_without_need_of_one_takes_no_generic_collection(tmp_path: Path, data: FitData) -> None:
    both = replace(data, generic=data)
    with pytest.raises(UsageError, match="recipe full keeps nothing in memory and takes no --generic"):
        run_fit(choose_recipe("full", "tiny", {}, {}), both, tmp_path / "out", say_nothing)


def test_test_images_among_the_generic_ones_are_recognised(data: FitData) -> None:
    test = load_collection("scenes/test").head(3)
    assert not saw_evaluation_data(replace(data, generic=data), None)
    assert saw_evaluation_data(replace(data, generic=FitData(test)), None)
    renamed = replace(test, name="mine/train")
    assert saw_evaluation_data(replace(data, generic=FitData(renamed, test=test)), None)
    assert saw_evaluation_data(replace(data, test=test, generic=FitData(renamed)), None)  # of the other data set's test


def test_the_generic_collection_comes_with_its_own_splits() -> None:
    found = load_fit_data("scenes-night", None, True, {}, True, say_nothing, generic="scenes")
    assert found.generic is not None
    assert [part.train.name for part in found.parts] == ["scenes-night/train", "scenes/train"]
    assert found.generic.validation is not None
    assert found.generic.test is not None
    assert (found.generic.validation.name, found.generic.test.name) == ("scenes/val", "scenes/test")


def test_what_lies_in_one_folder_needs_no_split(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photo" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / "photo" / name / "a.png")

    def names(dataset: str) -> tuple[str, bool]:
        found = load_fit_data(dataset, None, True, {}, True, say_nothing)
        return found.train.name, found.validation is None

    assert names(f"classes:{tmp_path}/photo") == (f"{tmp_path.name}/photo", True)
    shutil.copytree(tmp_path / "photo", tmp_path / "set" / "train")
    shutil.copytree(tmp_path / "photo", tmp_path / "set" / "val")
    assert names(f"classes:{tmp_path}/set") == ("set/train", False)
    plain = tmp_path / "photo" / "cats"
    (plain / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a cat"}')
    assert names(f"folder:{plain}") == ("cats", True)
    for split in ("train", "val"):
        shutil.copytree(plain, tmp_path / "split" / split)
    assert names(f"folder:{tmp_path}/split") == ("split/train", False)


def test_describing_a_recipe_says_what_it_searches() -> None:
    shown = json.loads(CliRunner().invoke(app, ["describe", "mwa", "--json"]).stdout)["recipe"]
    assert (shown["takes_generic"], shown["search"]) == (False, {"scale": ["0.1", "0.3", "0.6"]})
