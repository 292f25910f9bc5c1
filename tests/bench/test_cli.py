"""The command line as a user types it: output, exit codes, suggestions, and how fast it starts."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import pytest
import typer
from typer.testing import CliRunner

from bench.cli import app, main
from bench.retrieval import latency
from bench.run import RunResult


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def rove(*arguments: str | Path) -> Done:
    """Of the command in this process: dozens that import torch would take minutes."""
    printed, told = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(told),
    ):
        patch.setattr(sys, "argv", ["rove", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return Done(int(ended.value.code or 0), printed.getvalue(), told.getvalue())


def rove_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_start_up_loads_nothing_heavy() -> None:
    code = (
        "import sys, bench.cli\n"
        "heavy = {'torch', 'numpy', 'faiss', 'datasets', 'pandas', 'PIL', 'pydantic', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    assert "[/SPLIT]" in result.output or "--data-dir" not in result.output


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("submissions", "tiny"),
        ("recipes", "pocket"),
        ("shifts", "typo_keyboard"),
        ("attacks", "sga"),
        ("datasets", "flickr30k"),
        ("suites", "flickr8k-core-v1"),
    ],
)
def test_list_is_data_on_stdout(kind: str, name: str) -> None:
    done = rove_process("list", kind, "--json")
    assert done.returncode == 0, done.stderr
    assert name in {row["name"] for row in json.loads(done.stdout)}


def test_describe_finds_every_kind_of_thing() -> None:
    for name, kind in (
        ("coco", "dataset"),
        ("sketch", "shift"),
        ("apgd", "attack"),
        ("demo-v1", "suite"),
        ("openclip", "submission"),
    ):
        done = rove("describe", name, "--json")
        assert done.returncode == 0, done.stderr
        assert kind in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list", "shfts"), 2, "Did you mean 'shifts'?"),
        (("describe", "flickr30"), 2, "Did you mean 'flickr30k'?"),
        (("run", "tinny", "--suite", "demo-v1"), 2, "Did you mean 'tiny'?"),
        (("run", "tiny", "--suite", "demo-v2"), 2, "rove list suites"),
        (("run", "tiny", "--suite", "demo-v1", "--from", "nowhere"), 2, "nowhere"),
        (("run", "tiny", "--suite", "demo-v1", "--from", "tests"), 3, "no run.json"),
        (("generate", "scenes", "--attack", "pdg", "--victim", "tiny", "-o", "x"), 2, "Did you mean 'pgd'?"),
        (("generate", "scenes", "--attack", "pgd:3", "--victim", "tiny", "-o", "x"), 2, "budgets 1, 2, 4, 8"),
        (("generate", "scenes", "--attack", "pgd:2", "-o", "x"), 2, "--victim SUBMISSION"),
        (("generate", "scenes", "--attack", "pgd:2", "--shift", "fog", "-o", "x"), 2, "either --shift or --attack"),
        (("generate", "scenes", "-o", "x"), 2, "either --shift or --attack"),
        (("generate", "scenes", "--attack", "charmer:1", "--victim", "tiny", "--role", "both", "-o", "x"), 2, "--role"),
        (("run", "tiny", "--suite", "demo-v1", "--model-arg", "depth=3"), 2, "takes no --model-arg depth"),
        (("run", "tiny", "--suite", "demo-v1", "--model-arg", "depth"), 2, "expected KEY=VALUE"),
        (("run", "tiny", "--suite", "demo-v1", "--overwrite", "sometimes"), 2, "expected never, missing or always"),
        (("run", "nowhere/at/all", "--suite", "demo-v1"), 2, "no folder nowhere/at/all"),
        (("time",), 2, "one SUBMISSION"),
        (("site", "serve", "tests"), 2, "`rove site build -o tests` makes a site"),
        (("time", "tiny", "--compare", "tiny", "openclip"), 2, "--compare A B alone"),
        (("time", "tiny", "--gallery", "1.5M"), 2, "such as 100000, 100k or 10M"),
        (("time", "tiny", "--index", "IFV16,Flat"), 2, "faiss knows no index 'IFV16,Flat'"),
        (("time", "tiny", "--index", "Flat", "--nprobe", "8"), 2, "expected only parameters of that index"),
        (("time", "tiny", "--index", "IVF16,Flat", "--nprobe", "8,x"), 2, "--nprobe got '8,x'"),
        (("time", "tiny", "--index", "IVF16,Flat", "--nprobe", "8,9"), 2, "--sweep to try them all"),
        (("time", "tiny", "--sweep", "--nprobe", "8"), 2, "belong to an --index"),
        (("time", "tiny", "--index", "HNSW32", "--index-device", "cuda"), 2, "Choose --index-device cpu"),
        (("time", "tiny", "--index-device", "gpu"), 2, "expected cpu, cuda or cuda:N"),
        (("time", "tiny", "--threads", "4096"), 2, "threads were asked for"),
        (("fit", "tinny", "--train", "scenes", "--output", "x"), 2, "rove list recipes"),
        (("fit", "tiny", "--train", "scenes", "--output", "x", "--recipe-arg", "head=mlp"), 2, "it takes: none"),
        (("describe", "folder:/does/not/exist"), 3, "/does/not/exist"),
        (("frobnicate",), 2, "No such command"),
        (("generate", "scenes", "--shift", "gausian_noise", "-o", "x"), 2, "Did you mean 'gaussian_noise'?"),
        (("generate", "scenes", "--shift", "sketch", "--severity", "6", "-o", "x"), 2, "numbers from 1 to 5"),
        (("generate", "scenes", "--shift", "sketch:6", "-o", "x"), 2, "sketch exists at severity 1, 2, 3, 4, 5"),
        (
            ("generate", "scenes", "--shift", "negative", "--severity", "3", "-o", "x"),
            2,
            "negative exists at severity 1",
        ),
        (("generate", "scenez", "--shift", "sketch", "-o", "x"), 2, "Did you mean 'scenes'?"),
        (("generate", "scenes", "--shift", "sketch", "--limit", "1", "-o", "/proc/x"), 3, "/proc/x"),
        (("verify", "tests"), 3, "holds no manifest.json"),
        (("preview", "sketch", "no-such.png"), 3, "no-such.png"),
        (("preview", "gallery_mix", "a caption"), 2, "--partner"),
    ],
)
def test_wrong_input_is_explained(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = rove(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_scaffold_passes_check_and_runs(tmp_path: Path, suite_file: Path) -> None:
    made = rove("new", "my-model", "--output", tmp_path / "mine")
    assert made.stdout.strip() == str(tmp_path / "mine")
    checked = rove("check", tmp_path / "mine", "--json")
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["passed"]
    assert report["suite_seconds"]["flickr8k-core-v1"] > 0
    again = rove("new", "my-model", "--output", tmp_path / "mine")
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    done = rove("run", tmp_path / "mine", "--suite", suite_file, "--limit", "8", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["limit"] == 8


def test_check_names_what_fails(toys: Path, tmp_path: Path) -> None:
    done = rove("check", f"{toys / 'faulty.py'}:half_precision")
    assert done.returncode == 4
    assert "float16" in done.stderr
    module = tmp_path / "neighbourly.py"
    module.write_text(
        "import numpy as np\n"
        "class Neighbourly:\n"
        "    def encode_images(self, images):\n"
        "        return np.eye(len(images), 20, dtype=np.float32) + 1e-3\n"
        "    def encode_texts(self, texts):\n"
        "        return np.ones((len(texts), 20), np.float32)\n"
        "def load(context):\n"
        "    return Neighbourly()\n"
    )
    counted = rove("check", f"{module}:load")
    assert counted.returncode == 4
    assert "depends on its neighbours" in " ".join(counted.stderr.split())


def test_dry_run_writes_nothing(toys: Path, suite_file: Path, tmp_path: Path) -> None:
    done = rove("run", toys / "colours", "--suite", suite_file, "--output", tmp_path / "run", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["cells"]) == 9
    assert plan["seconds"] > 0
    assert 0 < plan["detectable_pp"] < 100
    assert not (tmp_path / "run").exists()


def test_a_suite_is_found_by_every_name_that_is_shown() -> None:
    for name in ("demo", "demo-core", "demo-v1", "demo-core-v1"):
        assert json.loads(rove("describe", name, "--json").stdout)["suite"]["label"] == "demo-core-v1"


def test_failed_cells_exit_with_5(toys: Path, suite_file: Path, tmp_path: Path) -> None:
    done = rove("run", f"{toys / 'faulty.py'}:zero", "--suite", suite_file, "--output", tmp_path / "run")
    assert done.returncode == 5
    assert "9 of 9 cells failed" in done.stderr


def test_score_and_compare(finished_run: RunResult) -> None:
    scored = rove("score", finished_run.folder, "--json")
    summary = json.loads(scored.stdout)
    assert set(summary["shifts"]) == {
        *("gaussian_noise", "typo_keyboard", "gallery_mix", "gallery_danger", "scenes-night/test")
    }
    for part in summary["overall"].values():
        assert part["low"] <= part["value"] <= part["high"]
    compared = rove("compare", finished_run.folder, finished_run.folder, "--json")
    for row in json.loads(compared.stdout):
        assert row["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert row["p_holm"] == 1.0
        assert row["equivalent"]


def test_timings_are_bundled_and_shown(
    toys: Path, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(latency, "WARM_UP_S", 0)
    run = rove("run", toys / "colours", "--suite", suite_file, "--output", tmp_path / "runs" / "colours" / "small")
    timings = tmp_path / "runs" / "colours" / "timings"
    options = ("--limit", "24", "--calls", "30", "--batch-size", "2", "--threads", "1", "--output", timings)
    timed = rove("time", toys / "colours", "--gallery", "2k", "--index", "IVF16,Flat", *options)
    assert timed.returncode == 0, timed.stderr
    assert "recall" not in timed.stdout
    assert Path(timed.stdout.strip()).parent == timings
    assert "1,976 synthetic vectors" in timed.stderr
    bundle, site = tmp_path / "bundle", tmp_path / "site"
    rove("bundle", run.stdout.strip(), "-o", bundle)
    assert rove("validate", bundle).returncode == 0
    assert rove("site", "build", bundle, "-o", site).returncode == 0
    assert "IVF16,Flat" in next(site.glob("*/submissions/*.html")).read_text()


def test_fit_makes_a_submission(tmp_path: Path) -> None:
    for level in range(64):
        PIL.Image.new("RGB", (40, 40), (4 * level,) * 3).save(tmp_path / f"{level}.png")
    captions = [f"a {('dark', 'bright')[level // 32]} square" for level in range(64)]
    lines = [json.dumps({"file_name": f"{level}.png", "caption": text}) for level, text in enumerate(captions)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    asked = ("fit", "tiny", "--train", f"folder:{tmp_path}", "--epochs", "1", "--output", tmp_path / "fitted")
    done = rove(*asked, "--name", "hasty")
    assert done.returncode == 0, done.stderr
    assert 'name = "hasty"' in (tmp_path / "fitted" / "submission.toml").read_text().splitlines()
    log = [json.loads(line) for line in (tmp_path / "fitted" / "fit.jsonl").read_text().splitlines()]
    assert log[-1]["epoch"] == 1
    again = rove(*asked)
    assert (again.returncode, "not empty" in again.stderr) == (2, True)
    assert rove("check", tmp_path / "fitted").returncode == 0


def test_generate_verify_preview(tmp_path: Path) -> None:
    made = rove("generate", "scenes", "--limit", "4", "--shift", "typo_*", "--severity", "1,5", "-o", tmp_path / "copy")
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(tmp_path / "copy")
    verified = rove("verify", tmp_path / "copy", "--json")
    assert json.loads(verified.stdout)["parts"] == 1 + 2 * 10
    estimate = rove("generate", "scenes", "--shift", "negative", "-o", tmp_path / "b", "--dry-run", "--json")
    assert json.loads(estimate.stdout)["n_images"] == 500
    assert not (tmp_path / "b").exists()
    shown = rove("preview", "typo_keyboard", "a red ball")
    assert shown.stdout.count("\n") == 6
    image = tmp_path / "image.png"
    PIL.Image.new("RGB", (40, 40), "red").save(image)
    drawn = rove("preview", "gaussian_noise", image, "--output", tmp_path / "sheet.png")
    with PIL.Image.open(drawn.stdout.strip()) as sheet:
        assert sheet.width > 6 * 176
