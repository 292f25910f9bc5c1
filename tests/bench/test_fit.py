"""`rove fit`: what it refuses, going on after a kill, the log, and what it says of the fitted submission."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from bench import fit, submission
from bench.cli import app
from bench.cli.submitting import parse_duration
from bench.data.registry import load_collection
from bench.errors import InputError, UsageError
from bench.fit import FitSettings, choose_recipe, run_fit, time_left
from bench.fit_data import FitData, load_fit_data, saw_evaluation_data
from bench.fit_report import manifest_toml, write_plot
from bench.fit_state import LOG_FILE, FitState, state_folder
from bench.recipes import read_recipe
from bench.records import Fit, Manifest, TrainingData
from bench.submission import digest_shared_code, find_recipe, find_submission, list_recipes, read_manifest
from bench.types import Base
from submissions.backbones.fitted import load_base

WEIGHTS = "weights.safetensors"
TOY = '''
"""Counts to four.

More is not said.
"""

from bench.types import FitFacts

ARGS = {"word": "a \\"b\\" \\u00e9"}
NEEDS_BASE = True
VERSION = 3
METHOD = "counting"


def fit(context):
    context.report({"epoch": 0, "epochs": 4, "validation_r1": 10.0})
    count = int(context.checkpoint.read() or b"0")
    while count < 4:
        count += 1
        context.report({"epoch": count, "epochs": 4, "loss": 1 / count, "validation_r1": 10.0 + count})
        context.checkpoint.write(str(count).encode())
    (context.output / "weights.safetensors").write_text(str(count))
    return FitFacts(100, 5, 7, False, 4.0, 4, 1.5, None, 14.0, 10.0)
'''
FIT = Fit(
    recipe="toy",
    version=1,
    seed=0,
    args={"a b": 'c "d" \\ é'},
    data=[TrainingData(name="scenes/train", sha256="0" * 64, n_images=2, n_captions=3)],
    validation="held out",
    relative_seconds=1e-7,
    saw_evaluation_data=False,
)


@pytest.fixture(scope="module")
def data() -> FitData:
    return FitData(load_collection("scenes/train").head(8), load_collection("scenes/val").head(4))


@pytest.fixture
def toy(tmp_path: Path) -> FitSettings:
    """A recipe that needs no torch, on `tiny`."""
    source = tmp_path / "toy" / "fit.py"
    source.parent.mkdir()
    source.write_text(TOY, encoding="utf-8")
    recipe = read_recipe(source)
    return FitSettings(recipe, find_submission("tiny"), recipe.args)


def rows_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def interrupt(settings: FitSettings, data: FitData, output: Path, n_writes: int) -> None:
    """Runs a fit that is interrupted before the checkpoint of that number is written."""
    write, left = FitState.write, [n_writes]

    def interrupted(self: FitState, state: bytes) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        write(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitState, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_fit(settings, data, output, print_nothing)


@pytest.mark.parametrize(
    ("recipe", "base", "words"),
    [
        ("full", None, "give --base SUBMISSION"),
        ("tiny", "openclip", "takes no --base"),
        ("full", "tinny", "Did you mean 'tiny'"),
        ("full", "model.py:load", "a function in a file"),
        ("ful", "tiny", "Did you mean 'full'"),
    ],
)
def test_a_base_is_given_exactly_where_one_is_needed(recipe: str, base: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_recipe(recipe, base, {}, {})


def test_arguments_go_over_the_defaults_and_no_others_are_taken() -> None:
    chosen = choose_recipe("full", "openclip", {"pretrained": "laion2b_s34b_b79k"}, {"towers": "text"})
    assert chosen.args == {**find_recipe("full").args, "towers": "text"}
    assert chosen.base is not None
    assert chosen.base.args == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "quick_gelu": "auto"}
    with pytest.raises(UsageError, match="takes no --recipe-arg tower; it takes: towers"):
        choose_recipe("full", "tiny", {}, {"tower": "text"})


def test_an_entry_point_is_no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = replace(find_submission("tiny"), import_name="their_package.rove")
    monkeypatch.setattr(fit, "find_submission", lambda reference, args: theirs)
    with pytest.raises(UsageError, match="entry point of an installed package"):
        choose_recipe("full", "theirs", {}, {})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["20", "m", "-5m", "0s", "1.5 h", "5d", "nanm", "1e3s"])
def test_bad_budgets_are_explained(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget got .*expected a time such as 90s, 20m or 1\.5h"):
        parse_duration(text, "--budget")


@pytest.mark.parametrize(
    ("figures", "budget", "left"),
    [
        ({"epoch": 0.5, "epochs": 2}, None, 30),
        ({"epoch": 0, "epochs": 2}, None, None),
        ({"epoch": 0.5, "epochs": 2}, 25, 15),
        ({"loss": 1.0}, 4, 0),
        ({"epoch": 2, "epochs": 2}, None, 0),
    ],
)
def test_time_left(figures: dict[str, float], budget: float | None, left: float | None) -> None:
    assert time_left(figures, 10.0, budget) == left


def test_an_interrupted_fit_goes_on_and_no_line_stands_twice(toy: FitSettings, data: FitData, tmp_path: Path) -> None:
    output, said = tmp_path / "out", list[str]()
    interrupt(toy, data, output, 3)
    assert not output.exists()
    assert [row["epoch"] for row in rows_of(state_folder(output) / LOG_FILE)] == [0, 1, 2, 3]
    run_fit(toy, data, output, said.append, resume=True)
    assert any("going on from the state" in line for line in said)
    assert [row["epoch"] for row in rows_of(output / LOG_FILE)] == [0, 1, 2, 3, 4]
    assert not state_folder(output).exists()
    assert (output / WEIGHTS).read_text() == "4"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"epochs": 2}, "epochs was none, is 2"),
        ({"budget_s": 60.0}, "budget in seconds was none, is 60.0"),
        ({"args": {"word": "b"}}, 'recipe\'s arguments was word=a "b" é, is word=b'),
        ({"base": find_submission("openclip")}, "base was tiny, is openclip"),
    ],
)
def test_the_state_of_another_fit_is_not_resumed(
    toy: FitSettings, data: FitData, tmp_path: Path, change: dict, words: str
) -> None:
    output = tmp_path / "out"
    interrupt(toy, data, output, 2)
    with pytest.raises(UsageError, match="of another fit: ") as caught:
        run_fit(replace(toy, **change), data, output, print_nothing, resume=True)
    assert words in str(caught.value)
    with pytest.raises(UsageError, match="other training data"):
        run_fit(toy, FitData(data.train.head(7), data.validation), output, print_nothing, resume=True)
    said = list[str]()
    run_fit(replace(toy, **change), data, output, said.append)
    assert any("discarding the state" in line for line in said)
    assert [row["epoch"] for row in rows_of(output / LOG_FILE)] == [0, 1, 2, 3, 4]


def print_nothing(line: str) -> None:
    """Takes a line for a person."""


def test_without_state_a_resumed_fit_begins_at_the_beginning(toy: FitSettings, data: FitData, tmp_path: Path) -> None:
    said = list[str]()
    run_fit(toy, data, tmp_path / "out", said.append, resume=True)
    assert any("starting from the beginning" in line for line in said)


def test_what_fails_leaves_nothing(toy: FitSettings, data: FitData, tmp_path: Path) -> None:
    broken = replace(toy, recipe=replace(toy.recipe, source=tmp_path / "broken" / "fit.py"))
    broken.recipe.source.parent.mkdir()
    broken.recipe.source.write_text("def fit(context):\n    raise ValueError('no')\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no"):
        run_fit(broken, data, tmp_path / "out", print_nothing)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UsageError, match="--name 'A B'"):
        run_fit(toy, data, tmp_path / "out", print_nothing, name="A B")
    with pytest.raises(UsageError, match="keeps no --budget"):
        run_fit(FitSettings(find_recipe("tiny"), None, {}, budget_s=5), data, tmp_path / "out", print_nothing)
    with pytest.raises(InputError, match=r"args\.word"):  # before an hour of training, not behind it
        run_fit(replace(toy, args={"word": "a\nb"}), data, tmp_path / "out", print_nothing)


def test_the_folder_says_what_was_done(toy: FitSettings, data: FitData, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_fit(toy, data, output, print_nothing, plot=True)
    manifest = read_manifest(output)
    assert (manifest.name, manifest.method, manifest.base, manifest.license) == ("tiny-toy", "counting", "tiny", "MIT")
    assert manifest.trained_on == ["scenes/train"]
    assert manifest.parameters.model_dump() == {"total": 107, "trainable": 5, "added": 7}
    made = manifest.fit
    assert made is not None
    assert (made.recipe, made.version, made.args) == ("toy", 3, {"word": 'a "b" é'})
    assert (made.data[0].name, made.data[0].n_images, made.data[0].n_captions) == ("scenes/train", 8, 40)
    assert (made.validation, made.validation_r1, made.base_validation_r1) == ("scenes/val", 14.0, 10.0)
    assert (made.mergeable, made.relative_seconds, made.saw_evaluation_data) == (False, None, False)
    card = (output / "README.md").read_text()
    for fact in ("# tiny-toy\n", made.data[0].sha256, "14.0 %; the base: 10.0 %", "word=a", "Counts to four."):
        assert fact in card
    assert (output / "fit.svg").read_text().startswith("<svg")
    assert "from submissions.toy.model import load" in (output / "model.py").read_text()


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.fit_state import FitState
from submissions.backbones import training
from test_fit import fit_full

training.CHECKPOINT_S = training.CHECKPOINT_COST = 0
write, left = FitState.write, [2]

def killed(self, state):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, state)

FitState.write = killed
fit_full(Path(sys.argv[1]), resume=False)
"""


def fit_full(output: Path, resume: bool) -> None:
    """Two epochs of two steps."""
    few = FitData(load_collection("scenes/train").head(16), load_collection("scenes/val").head(4))
    chosen = choose_recipe("full", "tiny", {}, {"batch": "8", "lr": "1e-3"})
    run_fit(replace(chosen, epochs=2, seed=3), few, output, print_nothing, resume=resume)


def test_a_fit_killed_in_the_middle_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit_full(whole, resume=False)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not killed.exists()
    left = rows_of(state_folder(killed) / LOG_FILE)
    assert [row["epoch"] for row in left] == [0, 1]  # killed between the line of the first epoch and its checkpoint
    fit_full(killed, resume=True)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    timeless = [[{**row, "seconds": 0} for row in rows_of(folder / LOG_FILE)] for folder in (killed, whole)]
    assert timeless[0] == timeless[1]
    assert [row["epoch"] for row in timeless[0]] == [0, 1, 2]
    images = [image.decode() for image in load_collection("scenes/val").head(2).images]
    fitted = load_base(Base("tiny-full", killed, {}, shipped=False), "cpu").encode_images(images)
    base = load_base(Base("tiny", find_submission("tiny").folder, {}, shipped=True), "cpu").encode_images(images)
    assert np.abs(fitted - base).max() > 1e-3


def environment() -> dict[str, str]:
    """Of a child that finds the packages and this file, and computes with as many threads."""
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def valid(title: str, args: dict[str, str]) -> Manifest | None:
    try:
        return Manifest(name="a", title=title, args=args, fit=FIT)
    except ValidationError:
        return None


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2))
def test_a_manifest_survives_being_written(title: str, args: dict[str, str]) -> None:
    for manifest in (valid(title, args), valid(f'"{title}"\n\\', {}), valid("🦊 'é'\t", {'a.b "c"': "=[x]#"})):
        if manifest is not None:
            assert Manifest.model_validate(tomllib.loads(manifest_toml(manifest))) == manifest


def test_data_of_a_test_split_are_recognised(data: FitData) -> None:
    test = load_collection("scenes/test").head(3)
    tiny = find_submission("tiny").manifest
    assert saw_evaluation_data(FitData(test), tiny)
    assert saw_evaluation_data(FitData(data.train, validation=test), None)
    assert saw_evaluation_data(FitData(replace(test, name="mine/train"), test=test), tiny)
    assert not saw_evaluation_data(replace(data, test=test), tiny)
    assert saw_evaluation_data(
        data, tiny.model_copy(update={"fit": FIT.model_copy(update={"saw_evaluation_data": True})})
    )
    assert saw_evaluation_data(data, tiny.model_copy(update={"trained_on": ["coco/test"]}))


def test_splits_beside_the_training_data_are_found() -> None:
    def load(train: str, validation: str | None = None, own: bool = True) -> FitData:
        return load_fit_data(train, validation, own, {}, offline=True, say=print_nothing)

    found = load("scenes")
    assert (found.train.name, found.license) == ("scenes/train", "MIT: rendered by Rove")
    assert found.validation is not None
    assert found.test is not None
    assert (found.validation.name, found.test.name) == ("scenes/val", "scenes/test")
    assert load("scenes", own=False).validation is None
    assert load("scenes/val").validation is None
    named = load("scenes", "scenes-night").validation
    assert named is not None
    assert named.name == "scenes-night/val"


def test_the_plot_shows_what_the_log_has(tmp_path: Path) -> None:
    log, picture = tmp_path / "fit.jsonl", tmp_path / "fit.svg"
    assert not write_plot(log, picture)
    log.write_text('{"epochs_chosen": 30, "seconds": 1}\n{"alpha": 0.5, "validation_r1": 3.0}\n')
    assert not write_plot(log, picture)
    assert not picture.exists()
    log.write_text('{"epoch": 0, "validation_r1": 2.0}\n{"epoch": 1.5, "loss": null, "validation_r1": 3.0}\n')
    assert write_plot(log, picture)
    assert "Validation R@1" in picture.read_text()
    assert "Loss" not in picture.read_text()


def test_listing_and_describing_recipes_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from bench.cli import app\n"
        "app(['list', 'recipes', '--json'], standalone_mode=False)\n"
        "app(['describe', 'full'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert {row["name"] for row in json.loads(done.stdout)} >= {"full", "wise_ft", "tiny", "pocket"}
    assert "full fine-tuning" in done.stderr


def test_recipes_are_read_as_python_reads_them() -> None:
    for name, recipe in list_recipes().items():
        spec = importlib.util.spec_from_file_location(f"read_{name}", recipe.source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        stated = {key: getattr(module, key, default) for key, default in (("ARGS", {}), ("MODEL_ARGS", {}))}
        assert (recipe.args, recipe.model_args) == (stated["ARGS"], stated["MODEL_ARGS"]), name
        assert recipe.needs_base == getattr(module, "NEEDS_BASE", False), name
        assert (recipe.version, recipe.method) == (getattr(module, "VERSION", 1), getattr(module, "METHOD", "")), name
        assert list(recipe.requires) == list(getattr(module, "REQUIRES", [])), name
        assert recipe.summary, name


def test_a_constant_that_must_be_run_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "fit.py"
    source.write_text('"""A recipe."""\nARGS = make_args()\n')
    with pytest.raises(InputError, match=r"fit\.py, line 2: `make_args\(\)` cannot be read without running it"):
        read_recipe(source)
    source.write_text('"""A recipe."""\nARGS = {"rank": 2}\n')
    with pytest.raises(InputError, match="expected strings by name"):
        read_recipe(source)


def test_the_code_of_every_recipe_is_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_submissions_folder", lambda: tmp_path)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "model.py").write_text("a")
    first = digest_shared_code()
    (tmp_path / "lora" / "notes.txt").write_text("b")
    assert digest_shared_code() == first
    (tmp_path / "lora" / "model.py").write_text("b")
    assert digest_shared_code() != first


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "run_fit", interrupted)
    arguments = ["fit", "full", "--base", "tiny", "--train", "scenes/val", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert "the same command with --resume goes on" in result.output
