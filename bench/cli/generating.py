"""`rove generate`, `rove verify` and `rove preview`: shifted data sets, and a look at what a shift does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.console import (
    DataDirs,
    Json,
    ShardProgress,
    keep_offline,
    parse_pairs,
    print_data,
    print_error,
    print_json,
    print_note,
    print_table,
    shard_progress,
)
from bench.cli.submitting import (
    BatchSize,
    Device,
    Executor,
    IsolationMode,
    ModelArgs,
    RayAddress,
    cluster_settings,
    worker_settings,
)
from bench.errors import InputError, UsageError

if TYPE_CHECKING:
    from bench.generate import GenerateSettings
    from bench.generate_attacked import AttackedSettings
    from bench.generated import GeneratedManifest
    from shifts.catalogue import Shift

Seed = Annotated[int, typer.Option(min=0, help="Other seeds give other draws of the same shift.")]
DatasetArg = Annotated[str, typer.Argument(help="NAME[/SPLIT] or FORMAT:PATH[/SPLIT].", metavar="DATASET")]


def generate(
    dataset: DatasetArg,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to fill.")],
    shift: Annotated[
        list[str] | None,
        typer.Option("--shift", help="A name, an id such as sketch:3, a pattern such as 'typo_*', or all."),
    ] = None,
    severity: Annotated[str, typer.Option("--severity", help="Such as 1,3,5; default: all that a shift has.")] = "",
    data_dir: DataDirs = None,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="An attack, such as pgd, or an id with its budget, pgd:2.")
    ] = None,
    victim: Annotated[
        str | None, typer.Option(help="With --attack: the submission that the items are made against.")
    ] = None,
    role: Annotated[
        str, typer.Option(help="With --attack: query or gallery, what the attacked items are in the retrieval.")
    ] = "query",
    model_arg: ModelArgs = None,
    device: Device = "cpu",
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    isolation: IsolationMode = "auto",
    executor: Executor = "local",
    ray_address: RayAddress = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be made, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Write shifted or attacked copies of a data set as Parquet; the same command goes on after an interruption."""
    keep_offline(offline)
    if bool(shift) == bool(attack):
        raise UsageError("expected either --shift or --attack; `rove list shifts` and `rove list attacks` show them.")
    cluster = cluster_settings(executor, ray_address)
    if attack:
        if victim is None or dry_run or cluster:
            raise UsageError("--attack needs --victim SUBMISSION, and knows neither --dry-run nor --executor ray.")
        from bench.generate_attacked import generate_attacked

        attacked = _attacked_settings(
            dataset,
            attack,
            (victim, parse_pairs(model_arg or [], "--model-arg")),
            role,
            data_dirs=parse_pairs(data_dir or [], "--data-dir"),
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            worker=worker_settings(device, "float32", offline, 600.0, isolation, None),
        )
        _print_manifest(_run(lambda progress: generate_attacked(attacked, output, progress)), output, as_json)
        return
    from bench.generate import GenerateSettings, estimate_size
    from bench.generate import generate as generate_dataset

    cells, optional = _choose(shift or [], _severities(severity))
    settings = GenerateSettings(
        dataset=dataset,
        cells=cells,
        optional=optional,
        data_dirs=parse_pairs(data_dir or [], "--data-dir"),
        seed=seed,
        limit=limit,
        offline=offline,
        workers=workers,
        cluster=cluster,
    )
    if dry_run:
        _print_estimate(settings, estimate_size(settings).as_dict(), as_json)
        return
    manifest = _run(lambda progress: generate_dataset(settings, output, progress))
    for name, reason in manifest.skipped.items():
        print_note(f"{name} was left out: {reason}")
    _print_manifest(manifest, output, as_json)


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder from `rove generate`.", exists=True, file_okay=False)],
    again: Annotated[
        str | None,
        typer.Option("--again", help="Make it all again from this data set, in temporary space, and compare."),
    ] = None,
    data_dir: DataDirs = None,
    as_json: Json = False,
) -> None:
    """Prove that a generated data set is whole and unchanged, and on demand that it comes out the same again."""
    from bench.generate import generate_again
    from bench.generated import verify_generated

    manifest = verify_generated(folder)
    if again is not None:
        with shard_progress() as progress:
            generate_again(manifest, again, parse_pairs(data_dir or [], "--data-dir"), progress)
    files = sum(len(part.files) for part in manifest.parts)
    if as_json:
        print_json({"parts": len(manifest.parts), "files": files, "verified": True, "made_again": again is not None})
    else:
        print_note(f"{folder}: {files} files of {len(manifest.parts)} parts are as they were generated.")


def preview(
    shift: Annotated[str, typer.Argument(help="A name, a pattern such as 'typo_*', or all.")],
    item: Annotated[str, typer.Argument(help="An image file, or a caption.", metavar="IMAGE|CAPTION")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")] = Path("preview.png"),
    partner: Annotated[Path | None, typer.Option(help="The other image, for gallery_mix and gallery_patch.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show what a shift does to an image, as a picture of all severities, or to a caption."""
    from bench.preview import draw_sheet, list_rewordings, read_canvas, write_sheet
    from shifts.catalogue import match_shifts

    chosen = match_shifts(shift)
    worded = [one for one in chosen if one.modality in ("text", "gallery_text")]
    pictured = [one for one in chosen if one.modality == "image" or (one.modality == "gallery_image" and partner)]
    if worded and not Path(item).is_file():
        runnable = _without_missing(worded, explicit=len(chosen) == 1)
        rows = list_rewordings(runnable, item, seed)
        if as_json:
            print_json([{"shift": name, "caption": text} for name, text in rows])
        else:
            print_data("\n".join(f"{name:<32} {text}" for name, text in [("original", item), *rows]))
        return
    if not pictured:
        expected = "a caption" if worded else "--partner IMAGE, since it blends two photos"
        raise UsageError(f"{shift} got '{item}'; expected {expected}.")
    if not Path(item).is_file():
        raise InputError(f"{shift} got '{item}', which is no file; expected an image.")
    sheet = draw_sheet(pictured, read_canvas(Path(item)), None if partner is None else read_canvas(partner), seed)
    write_sheet(sheet, output)
    print_data(str(output))


def _run(make: Callable[[ShardProgress], GeneratedManifest]) -> GeneratedManifest:
    try:
        with shard_progress() as progress:
            return make(progress)
    except KeyboardInterrupt:
        print_error("interrupted; what was made is kept, and the same command goes on from there.")
        raise typer.Exit(130) from None


def _print_manifest(manifest: GeneratedManifest, output: Path, as_json: bool) -> None:
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_data(str(output))


def _attacked_settings(
    dataset: str, attacks: Sequence[str], victim: tuple[str, dict[str, str]], role: str, **more: Any
) -> AttackedSettings:
    from bench.generate_attacked import AttackedSettings
    from bench.submission import find_submission
    from shifts.attacks.catalogue import find_attack, parse_attack

    chosen = []
    for name in attacks:
        budgets = [parse_attack(name)] if ":" in name else [(find_attack(name), b) for b in find_attack(name).budgets]
        chosen += [pair for pair in budgets if pair not in chosen]
    if role not in ("query", "gallery"):
        raise UsageError(f"--role got '{role}'; expected query or gallery.")
    return AttackedSettings(dataset, tuple(chosen), find_submission(*victim), role, **more)  # type: ignore[arg-type]


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (generate, verify, preview):
        app.command()(command)


def _severities(text: str) -> tuple[int, ...]:
    values = [part.strip() for part in text.split(",") if part.strip()]
    if any(value not in ("1", "2", "3", "4", "5") for value in values):
        raise UsageError(f"--severity got '{text}'; expected numbers from 1 to 5, such as 1,3,5.")
    return tuple(sorted({int(value) for value in values}))


def _choose(names: Sequence[str], wanted: tuple[int, ...]) -> tuple[tuple[tuple[Shift, int], ...], frozenset[str]]:
    """The (shift, severity) pairs asked for, each once, and the names that only a pattern asked for."""
    from shifts.catalogue import match_shifts, parse_shift

    cells: dict[tuple[str, int], tuple[Shift, int]] = {}
    explicit = set()
    for name in names:
        if ":" in name:
            found, severity = parse_shift(name)
            cells[found.name, severity] = (found, severity)
            explicit.add(found.name)
            continue
        matches = match_shifts(name)
        for shift in matches:
            severities = [one for one in shift.severities if not wanted or one in wanted]
            if not severities and len(matches) == 1:
                known = ", ".join(map(str, shift.severities))
                raise UsageError(f"{shift.name} exists at severity {known}; none of them is among --severity.")
            cells |= {(shift.name, one): (shift, one) for one in severities}
            explicit |= {shift.name} & {name}
    return tuple(cells.values()), frozenset(name for name, _ in cells) - explicit


def _without_missing(shifts: Sequence[Shift], explicit: bool) -> list[Shift]:
    from bench.errors import MissingError
    from shifts.catalogue import find_missing

    runnable = []
    for shift in shifts:
        reason = find_missing(shift.name)
        if reason and explicit:
            raise MissingError(reason)
        if reason:
            print_note(f"{shift.name} is left out: {reason}")
        else:
            runnable.append(shift)
    return runnable


def _print_estimate(settings: GenerateSettings, facts: dict[str, float], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    rows = [(shift.id(severity), shift.modality) for shift, severity in settings.cells]
    print_table(settings.dataset, ["shift", "changes"], rows)
    print_note(
        f"{len(rows)} shifts of {facts['n_images']:.0f} images: about {facts['bytes'] / 1e9:.2f} GB and "
        f"{facts['seconds'] / 60:.0f} minutes with {settings.n_workers} processes."
    )
