"""`rove new`, `rove check`, `rove fit` and `rove run`: from an idea to a scored submission."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import (
    DataDirs,
    Json,
    command_line,
    keep_offline,
    parse_pairs,
    print_data,
    print_error,
    print_json,
    print_note,
    print_table,
    run_progress,
)
from bench.errors import IncompleteError, SubmissionError, UsageError

if TYPE_CHECKING:
    from bench.cells import RunSettings
    from bench.run import RunResult
    from bench.submission import Submission
    from bench.suites import Suite
    from bench.types import ClusterSettings
    from bench.worker.host import WorkerSettings

SubmissionArg = Annotated[str, typer.Argument(help="A name, a folder, or path.py:load.", metavar="SUBMISSION")]
ModelArgs = Annotated[list[str] | None, typer.Option("--model-arg", help="KEY=VALUE for the submission; repeatable.")]
Device = Annotated[str, typer.Option(help="torch's name of the device.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Items a batch.")]
Executor = Annotated[str, typer.Option(help="local, or ray: on a Ray cluster.")]
Replicas = Annotated[
    int | None, typer.Option(min=1, help="With ray: copies of the model; default: one a GPU, or one a node.")
]
GpusPerReplica = Annotated[
    float | None, typer.Option(min=0, help="With ray: such as 0.5; default: 1 with --device cuda.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="With ray: a running cluster's HOST:PORT, or auto; default: this machine.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing.")]
Timeout = Annotated[float, typer.Option(min=1, help="Wall-clock limit for one batch, in seconds.")]
IsolationMode = Annotated[
    str, typer.Option("--isolation", help="auto, none, process or strict: what the submission is kept from.")
]
Memory = Annotated[
    float | None, typer.Option(min=0.1, help="Most memory of the submission's processes, in GB; default: all there is.")
]
Overwrite = Annotated[str, typer.Option(help="never, missing or always: which finished cells are scored again.")]


def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, - and _.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to make; default ./NAME.")] = None,
) -> None:
    """Scaffold a submission that passes `rove check` as it is."""
    from bench.submission import scaffold

    folder = scaffold(name, output or Path(name))
    print_note(f"wrote {folder}. Next: rove check {folder}")
    print_data(str(folder))


def check(
    submission: SubmissionArg,
    model_arg: ModelArgs = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 32,
    offline: Offline = False,
    timeout: Timeout = 600.0,
    isolation: IsolationMode = "auto",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Check a submission in under a minute, and tell how long a full run will take."""
    from bench.check import check_submission
    from bench.submission import find_submission

    found = find_submission(submission, parse_pairs(model_arg or [], "--model-arg"))
    report = check_submission(found, worker_settings(device, dtype, offline, timeout, isolation, memory), batch_size)
    if as_json:
        print_json(report.as_dict())
    else:
        rows = [("ok" if step.passed else "FAILED", step.name, step.detail) for step in report.steps]
        print_table(f"check of {found.label}", ["", "step", "detail"], rows)
        for suite, seconds in report.suite_seconds.items():
            print_note(f"a full run of {suite} will take about {_duration(seconds)}.")
    if not report.passed:
        raise SubmissionError(f"{found.label} does not pass; see the steps marked FAILED.")


def fit(
    recipe: Annotated[str, typer.Argument(help="A name from `rove list recipes`.", metavar="RECIPE")],
    train: Annotated[str, typer.Option(help="The data set to learn from: NAME[/SPLIT] or FORMAT:PATH[/SPLIT].")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The submission folder to make.")],
    base: Annotated[
        str | None, typer.Option(help="The submission to start from, a shipped one's name or a folder.")
    ] = None,
    base_arg: Annotated[
        list[str] | None, typer.Option("--base-arg", help="KEY=VALUE for the base; repeatable.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--val", help="Data set for choices; default: split val beside --train, or held out.")
    ] = None,
    generic: Annotated[
        str | None, typer.Option(help="Data set that the base knows and is not to forget, where a recipe takes one.")
    ] = None,
    data_dir: DataDirs = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same weights on the same machine.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; default: the recipe's.")] = None,
    budget: Annotated[str | None, typer.Option(help="Most time to train, such as 90s, 20m or 1.5h.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Fit every setting of the recipe's SEARCH; keep the best by validation.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command was interrupted.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Also draw loss and validation recall, fit.svg.")] = False,
    recipe_arg: Annotated[
        list[str] | None, typer.Option("--recipe-arg", help="KEY=VALUE for the recipe; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the submission; default: BASE-RECIPE.")] = None,
    device: Device = "cpu",
    executor: Executor = "local",
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    offline: Offline = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False,
) -> None:
    """Train a recipe on a collection; the result is a submission folder."""
    keep_offline(offline)
    from bench.fit import choose_recipe, run_fit
    from bench.fit_data import load_fit_data

    base_args, args = parse_pairs(base_arg or [], "--base-arg"), parse_pairs(recipe_arg or [], "--recipe-arg")
    budget_s = None if budget is None else parse_duration(budget, "--budget")
    chosen = choose_recipe(recipe, base, base_args, args, search)
    cluster = cluster_settings(executor, ray_address, replicas, gpus_per_replica)
    settings = replace(chosen, seed=seed, epochs=epochs, budget_s=budget_s, device=device, cluster=cluster)
    copies = parse_pairs(data_dir or [], "--data-dir")
    data = load_fit_data(train, validation, chosen.recipe.needs_base, copies, offline, print_note, generic)
    try:
        run_fit(settings, data, output, print_note, name=name, resume=resume, overwrite=overwrite, plot=plot)
    except KeyboardInterrupt:
        print_error("interrupted; the same command with --resume goes on from the last checkpoint.")
        raise typer.Exit(130) from None
    print_note(f"wrote {output}. Next: rove check {output}")
    print_data(str(output))


def run(
    submission: SubmissionArg,
    suite: Annotated[str, typer.Option("--suite", "-s", help="A name from `rove list suites`, or a TOML file.")],
    model_arg: ModelArgs = None,
    data_dir: DataDirs = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; default runs/.")] = None,
    overwrite: Overwrite = "missing",
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first images; marks the run unrankable.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Another run of the suite: its attacked items are scored instead.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 32,
    rerank_k: Annotated[
        int | None,
        typer.Option("--rerank-k", min=1, help="Items that a second stage orders; default: the manifest's, or 20."),
    ] = None,
    offline: Offline = False,
    timeout: Timeout = 600.0,
    cell_timeout: Annotated[float, typer.Option(min=1, help="Wall-clock limit for one cell, in seconds.")] = 43_200.0,
    isolation: IsolationMode = "auto",
    memory: Memory = None,
    executor: Executor = "local",
    replicas: Replicas = None,
    gpus_per_replica: GpusPerReplica = None,
    ray_address: RayAddress = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Score a submission on a suite; the same command goes on after an interruption."""
    keep_offline(offline)
    from bench.bundle import read_results
    from bench.cells import RunSettings
    from bench.run import run_suite, transfer_suite
    from bench.submission import find_submission
    from bench.suites import find_suite

    if overwrite not in ("never", "missing", "always"):
        raise UsageError(f"--overwrite got '{overwrite}'; expected never, missing or always.")
    found, cells = find_submission(submission, parse_pairs(model_arg or [], "--model-arg")), find_suite(suite)
    settings = RunSettings(
        worker=replace(
            worker_settings(device, dtype, offline, timeout, isolation, memory), cell_timeout_s=cell_timeout
        ),
        batch_size=batch_size,
        limit=limit,
        data_dirs=parse_pairs(data_dir or [], "--data-dir"),
        output=output,
        overwrite=overwrite,
        command=command_line(),
        source=source,
        rerank_k=rerank_k,
        cluster=cluster_settings(executor, ray_address, replicas, gpus_per_replica),
    )
    if source is not None:
        cells = transfer_suite(cells, read_results(source))
    if dry_run:
        _print_plan(found, cells, settings, as_json)
        return
    if cells.status == "draft":
        print_note(f"{cells.label}: this suite is not frozen yet; its cells may still change.")
    try:
        with run_progress(len(cells.cells)) as progress:
            result = run_suite(found, cells, settings, progress)
    except KeyboardInterrupt:
        print_error("interrupted; what was finished is kept, and the same command goes on from there.")
        raise typer.Exit(130) from None
    _print_result(result, as_json)


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (new, check, fit, run):
        app.command()(command)


def worker_settings(
    device: str, dtype: str, offline: bool, timeout: float, isolation: str, memory: float | None
) -> WorkerSettings:
    """How a submission is run, from the command line's options.

    Raises:
        UsageError: there is no such dtype or isolation, or the latter cannot be had here.
    """
    from bench.worker.host import WorkerSettings
    from bench.worker.isolation import choose_isolation

    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype got '{dtype}'; expected float32 or bfloat16.")
    return WorkerSettings(
        device=device,
        dtype=dtype,
        offline=offline,
        load_timeout_s=max(timeout, WorkerSettings.load_timeout_s),
        batch_timeout_s=timeout,
        isolation=choose_isolation(isolation),
        memory_bytes=None if memory is None else int(memory * 1e9),
    )


def parse_duration(text: str, flag: str) -> float:
    """The seconds that `90s`, `20m` or `1.5h` stand for.

    Raises:
        UsageError: it is nothing of that form, or no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if seconds <= 0:
        raise UsageError(f"{flag} got '{text}'; expected a time such as 90s, 20m or 1.5h.")
    return seconds


def cluster_settings(
    executor: str, address: str | None, replicas: int | None = None, gpus_per_replica: float | None = None
) -> ClusterSettings | None:
    """Where the work is done, from the command line's options; None for this machine without Ray.

    Raises:
        UsageError: there is no such executor, or it takes no such option.
    """
    from bench.types import ClusterSettings

    if executor not in ("local", "ray"):
        raise UsageError(f"--executor got '{executor}'; expected local or ray.")
    given = {"--replicas": replicas, "--gpus-per-replica": gpus_per_replica, "--ray-address": address}
    useless = next((name for name, value in given.items() if value is not None), None)
    if executor == "local" and useless:
        raise UsageError(f"{useless} says how a cluster is used; expected --executor ray with it.")
    return ClusterSettings(replicas, gpus_per_replica, address) if executor == "ray" else None


def _print_plan(submission: Submission, suite: Suite, settings: RunSettings, as_json: bool) -> None:
    from bench.check import plan_run

    plan = plan_run(submission, suite, settings)
    if as_json:
        print_json(plan.as_dict())
        return
    print_table(f"{submission.label} on {suite.label}", ["cell", "directions"], plan.cells)
    print_note(
        f"{len(plan.cells)} cells, about {_duration(plan.seconds)} and {plan.disk_bytes / 1e6:.0f} MB; "
        f"the smallest difference in R@1 that {plan.n_images} images can show is about {plan.detectable_pp:.1f} pp."
    )
    if settings.cluster and settings.cluster.replicas:
        n_replicas = settings.cluster.replicas
        print_note(
            f"shared out to {n_replicas} replicas as fast as this machine: {_duration(plan.seconds / n_replicas)}."
        )


def _print_result(result: RunResult, as_json: bool) -> None:
    from bench.summary import summarise_run

    if not as_json or result.failed:
        print_data(str(result.folder))
    if result.failed:
        first = result.failed[0]
        raise IncompleteError(
            f"{len(result.failed)} of {len(result.records)} cells failed, first {first.cell.id} ({first.status}): "
            f"{first.reason}\nThe same command tries them again."
        )
    for probe in result.manifest.probes:
        if probe.status != "passed":
            print_note(f"probe '{probe.name}' {probe.status}: {probe.detail}. See docs/probes.md.")
    if as_json:
        print_json({"run": str(result.folder), **summarise_run(result.folder).as_dict()})


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
