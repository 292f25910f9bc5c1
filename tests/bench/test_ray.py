"""Cells scored by replicas on a local Ray cluster: the same records, whoever is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from observers import Silent

from bench.cells import ClusterSettings, RunSettings
from bench.data.registry import load_collection
from bench.environment import describe_environment, surroundings_of
from bench.errors import InputError, UsageError
from bench.fit import choose_recipe, run_fit
from bench.fit_data import FitData
from bench.generate import GenerateSettings, generate
from bench.records import Record
from bench.run import RunResult, run_suite
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite
from bench.worker.host import WorkerSettings
from bench.worker.isolation import choose_isolation
from shifts.catalogue import parse_shift

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'rove-bench[ray]'")

TWO, LIMIT = ClusterSettings(replicas=2), 6
TOYS = Path(__file__).resolve().parents[1] / "toys"
POISONED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {toy!r})
from model import Colours

class Poisoned(Colours):
    def encode_images(self, images):
        if max(np.asarray(image).mean() for image in images) < 100:
            guard = open(f"/proc/{{os.getppid()}}/status").read()
            os.kill(int(guard.partition("PPid:")[2].split()[0]), signal.SIGKILL)
        return super().encode_images(images)

def load(context):
    return Poisoned(1.0)
"""
HEAD = """
name = "few"
version = 1
status = "draft"
title = "Few"
summary = "A few cells."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = 24
"scenes-night/test" = 24
"""


def cells(collection: str, more: str = 'shifts = ["clean_canvas"]') -> str:
    return f'\n[[cells]]\nreason = "For a test."\ncollection = "{collection}"\n{more}\n'


ATTACKED = 'attacks = ["pgd"]\nbudgets = [8]\nthreat_models = ["query", "gallery_target"]\nn_images = 6'


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Nodes would cost seconds each; several workers on one do everything but share a disk."""
    ray.init(address="local", num_cpus=3, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def contents(folder: Path) -> dict[str, Any]:
    """Records without their timing, and the bytes of evidence and examples."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        found[path.name] = {**json.loads(path.read_text()), "timing": None}
    for path in [*sorted((folder / "cells").glob("*.parquet")), *sorted((folder / "examples").rglob("*"))]:
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def verdicts(run: RunResult) -> list[tuple[str, str]]:
    return [(probe.name, probe.status) for probe in run.manifest.probes]


class Killer(Silent):
    """Ends a replica's process, as a machine that fails would, when the first cell is finished."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def cell_finished(self, record: Record, reused: bool) -> None:
        super().cell_finished(record, reused)
        if not self.killed:
            self.killed.append(find_replicas()[0])
            os.kill(self.killed[0], signal.SIGKILL)


def find_replicas(name: bytes = b"ray::_Replica") -> list[int]:
    """Processes of this cluster's replicas, or of what else is called by `name`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            named = path.read_bytes().startswith(name)
        except OSError:
            continue
        if named:
            found.append(int(path.parent.name))
    return sorted(found)


def test_records_are_those_of_the_local_executor_though_a_replica_is_lost(
    cluster: None, finished_run: RunResult, colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    observer = Killer()
    settings = RunSettings(output=tmp_path / "run", batch_size=16, cluster=TWO)
    result = run_suite(colours, suite, settings, observer)
    assert observer.killed
    assert contents(result.folder) == contents(finished_run.folder)
    assert [record.cell for record in result.records] == list(suite.cells)
    assert sorted(observer.scored) == sorted(cell.id for cell in suite.cells)
    assert verdicts(result) == verdicts(finished_run)
    assert result.manifest.environment == finished_run.manifest.environment
    assert_no_replica_is_left()


@pytest.fixture(scope="module")
def limited_run(tmp_path_factory: pytest.TempPathFactory, colours: Submission, suite: Suite) -> RunResult:
    """Few items and no probes: for the tests that are about the order of events."""
    folder = tmp_path_factory.mktemp("limited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        return run_suite(colours, suite, RunSettings(output=folder / "run", limit=LIMIT), Silent())


def test_a_cell_that_takes_every_replica_with_it_has_an_error_and_the_others_go_on(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bench.ray_cluster.MOST_LOST", 2)
    (tmp_path / "suite.toml").write_text(HEAD + cells("scenes-night/test") + cells("scenes/test"))
    (tmp_path / "poisoned.py").write_text(POISONED.format(toy=str(TOYS / "colours")))
    submission, suite = find_submission(f"{tmp_path / 'poisoned.py'}:load"), read_suite(tmp_path / "suite.toml")
    open_to_all = replace(WorkerSettings(), isolation=choose_isolation("none"))
    settings = RunSettings(worker=open_to_all, output=tmp_path / "run", limit=LIMIT, cluster=ClusterSettings(1))
    result = run_suite(submission, suite, settings, Silent())
    [failed] = result.failed
    assert failed.cell.collection == "scenes-night/test"
    assert failed.status == "error"
    assert failed.reason.startswith("2 replicas were lost, one after the other")
    assert len(result.records) == 2
    assert "a replica was lost, another takes its place" in caplog.text


def test_an_interrupted_run_is_finished_by_the_other_executor(
    cluster: None, limited_run: RunResult, colours: Submission, suite: Suite, suite_file: Path, tmp_path: Path
) -> None:
    run = [sys.executable, "-m", "bench.cli", "run", str(TOYS / "colours"), "--suite", str(suite_file)]
    run += ["--output", str(tmp_path / "run"), "--limit", str(LIMIT)]
    address = ray.get_runtime_context().gcs_address
    on_ray = [*run, "--executor", "ray", "--replicas", "2", "--ray-address", address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Whoever runs the tests may ignore interrupts, as a shell does for what it puts into the background.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(on_ray, **pipes, text=True, preexec_fn=heed)
    while process.poll() is None and len(list((tmp_path / "run" / "cells").glob("*.json"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, told = process.communicate()
    assert process.returncode == 130, told
    assert "the same command goes on from there" in told
    assert output == ""
    assert_no_replica_is_left()
    n_kept = len(list((tmp_path / "run" / "cells").glob("*.json")))
    assert 2 <= n_kept < len(limited_run.records)
    run_suite(colours, suite, RunSettings(output=tmp_path / "run", limit=LIMIT), Silent())
    assert contents(tmp_path / "run") == contents(limited_run.folder)


def test_attacked_cells_are_the_same_and_share_their_examples(cluster: None, toys: Path, tmp_path: Path) -> None:
    attacked = cells("scenes/test", ATTACKED)
    (tmp_path / "attacked.toml").write_text(HEAD + cells("scenes/test") + attacked)
    suite, soft = read_suite(tmp_path / "attacked.toml"), find_submission(str(toys / "soft_colours"))
    local = RunSettings(output=tmp_path / "local", batch_size=5, limit=24)
    run_suite(soft, suite, local, Silent())
    run_suite(soft, suite, replace(local, output=tmp_path / "ray", cluster=TWO), Silent())
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


class Generating:
    """Does something when the first shard of a data set is made."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then, self.shards = then, list[str]()

    def planned(self, n_rows: int) -> None:
        pass

    def shard_done(self, shift_id: str, n_rows: int) -> None:
        self.shards.append(shift_id)
        if len(self.shards) == 1:
            self.then()


SHIFTS = ("gaussian_noise:1", "elastic_transform:5", "typo_keyboard:3", "sentence_formal:1", "gallery_mix:4")
ON_CLUSTER = GenerateSettings(
    "scenes/test", tuple(map(parse_shift, SHIFTS)), limit=24, workers=2, cluster=ClusterSettings()
)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("generated") / "copy"
    generate(replace(ON_CLUSTER, cluster=None), folder, Generating(lambda: None))
    return bytes_of(folder)


def test_a_data_set_is_the_same_though_a_process_is_lost(
    cluster: None, generated: dict[str, bytes], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.extend(find_replicas(b"ray::_call"))
        for process in killed:
            os.kill(process, signal.SIGKILL)

    observer = Generating(kill)
    generate(ON_CLUSTER, tmp_path / "copy", observer)
    assert killed
    assert sorted(observer.shards) == sorted(["clean_canvas", *SHIFTS])
    assert bytes_of(tmp_path / "copy") == generated


def test_what_a_cluster_began_is_finished_without_one(
    cluster: None, generated: dict[str, bytes], tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(ON_CLUSTER, tmp_path / "copy", Generating(interrupt))
    assert len(list((tmp_path / "copy").rglob("*.parquet"))) == 1
    generate(replace(ON_CLUSTER, cluster=None), tmp_path / "copy", Generating(lambda: None))
    assert bytes_of(tmp_path / "copy") == generated


def test_a_node_with_other_versions_generates_nothing(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.generate._versions", lambda: {"numpy": "1.0"})
    with pytest.raises(InputError, match=r"node \S+ has \S+ .*; expected .*, as on the first node"):
        generate(ON_CLUSTER, tmp_path / "copy", Generating(lambda: None))
    assert not list((tmp_path / "copy").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("recipe", "base", "args"), [("tip_adapter", "tiny", {"cache": "20"}), ("pocket", None, {})], ids=["base", "towers"]
)
def test_a_fit_whose_features_a_cluster_computes_has_the_same_weights(
    cluster: None, recipe: str, base: str | None, args: dict[str, str], tmp_path: Path
) -> None:
    data = FitData(load_collection("scenes/train").head(70), load_collection("scenes/val").head(10))
    asked = replace(choose_recipe(recipe, base, {}, args), epochs=1)
    for name, settings in {"local": None, "ray": TWO}.items():
        run_fit(replace(asked, cluster=settings), data, tmp_path / name, lambda line: None)
    found = [
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))}
        for name in ("local", "ray")
    ]
    assert found[0]
    assert found[0] == found[1]


def test_a_node_with_another_base_is_refused(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submissions.backbones.frozen.digest_of", lambda module: "0" * 64)
    data = FitData(load_collection("scenes/train").head(8), load_collection("scenes/val").head(4))
    settings = replace(choose_recipe("tip_adapter", "tiny", {}, {"cache": "4"}), cluster=TWO)
    with pytest.raises(InputError, match=r"a node's base tiny at .* has other weights .*the same on every node"):
        run_fit(settings, data, tmp_path / "made", lambda line: None)


def test_a_recipe_that_shares_nothing_out_says_so(tmp_path: Path) -> None:
    data = FitData(load_collection("scenes/train").head(8), load_collection("scenes/val").head(4))
    settings = replace(choose_recipe("lora", "tiny", {}, {}), cluster=TWO)
    with pytest.raises(UsageError, match="recipe lora trains its towers on one machine and takes no --executor ray"):
        run_fit(settings, data, tmp_path / "made", lambda line: None)


@pytest.mark.parametrize(
    ("device", "settings", "message"),
    [
        ("cpu", ClusterSettings(replicas=4), r"room for 3 replicas.*expected 4.*Fewer --replicas"),
        ("cpu", ClusterSettings(gpus_per_replica=0.5), "expected 0 for cpu"),
        ("cuda", ClusterSettings(gpus_per_replica=0), "more for cuda"),
        ("cuda", ClusterSettings(gpus_per_replica=1.5), "a share of one, or a whole number"),
        ("cuda:1", ClusterSettings(), "which chooses GPUs; expected cpu or cuda"),
    ],
)
def test_what_the_cluster_cannot_do_is_refused(
    cluster: None, device: str, settings: ClusterSettings, message: str
) -> None:
    from bench.ray_cluster import connect

    with pytest.raises(UsageError, match=message), connect(settings, device):
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "asked", "expected"),
    [
        ("cuda", None, None, 2),
        ("cuda", 0.5, None, 4),
        ("cuda", 0.3, None, 6),
        ("cuda", 2, None, 1),
        ("cpu", None, 5, 5),
    ],
)
def test_replicas_are_as_many_as_there_is_room_for(
    cluster: None, device: str, gpus: float | None, asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.ray_cluster import Cluster

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    assert Cluster(ClusterSettings(asked, gpus), device).n_replicas == expected


def test_a_node_of_another_kind_is_refused(cluster: None, colours: Submission, suite: Suite) -> None:
    from bench.cells import CellInputs
    from bench.ray_cluster import check_node

    with pytest.raises(InputError, match=r"has another submission at .*the same on every node"):
        check_node(CellInputs(replace(colours, fingerprint="0" * 64), suite, RunSettings(), {}))
    here = surroundings_of(describe_environment("cpu", ["numpy"]))
    with pytest.raises(InputError, match=r"has numpy \S+; expected 1\.0, as on the first node"):
        check_node(CellInputs(colours, suite, RunSettings(), {**here, "numpy": "1.0"}))


@pytest.mark.parametrize("address", ["localhost:1", "nowhere", "ray://localhost:10001"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.ray_cluster import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError, match=r"no Ray cluster at|expected HOST:PORT or auto"):
        connect(ClusterSettings(address=address), "cpu").__enter__()


def test_without_ray_the_remedy_is_named(suite_file: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from bench.cli import main; sys.exit(main())"
    run = ["run", str(TOYS / "colours"), "--suite", str(suite_file), "--executor", "ray"]
    process = subprocess.run([sys.executable, "-c", code, *run], capture_output=True, text=True)
    assert process.returncode == UsageError.exit_code
    assert "pip install 'rove-bench[ray]'" in process.stderr


def assert_no_replica_is_left() -> None:
    """Ray ends actors soon after it is told to."""
    deadline = time.monotonic() + 20
    while find_replicas():
        assert time.monotonic() < deadline
        time.sleep(0.005)
