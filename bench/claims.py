"""What a bundle says beside what its evidence shows: checked against itself, since a stranger may have written it.

Nothing here opens a file or knows the catalogue. Each function returns nothing, if what it is given can be what a run
left, and raises an InputError otherwise; its message begins with `where`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from bench.errors import InputError
from bench.records import CLEAN, PROBES, AttackReport, Cell, Data, Record, RunManifest

_LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_MAX_IMAGES = 100_000  # each cell draws ten thousand resamples of its images
_MAX_ITEMS = 1 << 20


def check_manifest(where: str, manifest: RunManifest) -> None:
    """A label that is the submission's, all probes or none, and cells that differ, each of one of the collections."""
    if not _LABEL.fullmatch(manifest.label) or not manifest.label.startswith(manifest.submission.name):
        raise InputError(f"{where} has the label {manifest.label}; expected '{manifest.submission.name}', or longer.")
    slugs = [cell.slug for cell in manifest.cells]
    if not slugs or len(set(slugs)) != len(slugs):
        raise InputError(f"{where} has no cells, or two of one name; expected every cell of its suite once.")
    named = {name for cell in manifest.cells for name in (cell.collection, cell.baseline) if name}
    unknown = sorted(named - set(manifest.collections))
    if unknown:
        raise InputError(f"{where} has cells of {unknown[0]}, which is not among its collections.")
    expected = PROBES if manifest.rerank_k is not None else PROBES[:-1]
    if manifest.probes and tuple(probe.name for probe in manifest.probes) != expected:
        raise InputError(f"{where} leaves a probe out, or has another; expected none, or {', '.join(expected)}.")


def check_families(where: str, records: Sequence[Record]) -> None:
    """Families as far as they follow from the cells; of a shift or attack only that all its cells have the same."""
    known: dict[tuple[str, bool], str] = {}
    for record in records:
        cell, family = record.cell, record.family
        named = "clean" if cell.is_clean else "domain" if cell.shift in CLEAN else ""
        expected = named or known.setdefault((cell.shift.partition(":")[0], cell.is_attack), family)
        is_strange = not named and (family in ("", "clean") or family.endswith("_attack") != cell.is_attack)
        if family != expected or is_strange:
            raise InputError(f"{where}: {cell.id} is counted as '{family}', which other cells or its own kind exclude.")


def check_isolation(where: str, manifest: RunManifest, records: Sequence[Record]) -> None:
    """All cells were scored at the level that the manifest states; the records of early bundles all say nothing."""
    levels = {record.isolation for record in records if record.status == "ok"}
    if not levels <= {manifest.isolation} and levels != {""}:
        raise InputError(
            f"{where}: cells state the isolation {', '.join(map(repr, sorted(levels)))}; expected that of run.json, "
            f"{manifest.isolation!r}, of each."
        )


def check_skipped(where: str, manifest: RunManifest, records: Sequence[Record]) -> None:
    """Only attacks are skipped, and of these only what a run can find not to be applicable.

    That is: a stage that the submission has not; a second stage or distractors, which not every attack reaches; and an
    attack that needs a gradient, of which then no cell was scored. Whether an attack needs one, the catalogue knows.
    """
    scored = {record.cell.change for record in records if record.status == "ok" and record.cell.is_attack}
    for record in records:
        if record.status != "skipped":
            continue
        cell = record.cell
        blank = Record(cell=cell, family=record.family, key=record.key, status="skipped", reason=record.reason)
        if record != blank or not record.reason.strip():
            raise InputError(f"{where}: {cell.id} was skipped; expected a reason, and nothing else.")
        if not cell.is_attack or not (_is_out_of_reach(cell, manifest) or _needs_more(cell, scored)):
            raise InputError(f"{where}: {cell.id} was skipped, but it can be scored. Run it.")


def _is_out_of_reach(cell: Cell, manifest: RunManifest) -> bool:
    """Whether an attack may have no goal, or nothing to make distractors of, though others of its name do."""
    lacks_stage = bool(cell.stage) and manifest.rerank_k is None
    return cell.threat_model == "distractor" or (not cell.victim and (lacks_stage or cell.stage == "reranking"))


def _needs_more(cell: Cell, scored: Collection[str]) -> bool:
    """Whether an attack of this name may need a gradient that the submission does not give."""
    return not cell.victim and cell.change not in scored


def check_sources(where: str, records: Sequence[Record]) -> None:
    """Cells of as many images of one collection state the same source, and a source is the same wherever it stands."""
    known: dict[object, object] = {}
    for record in records:
        if record.data is None:
            continue
        name, data = record.cell.collection, record.data
        source = data.source_sha256, data.n_images, data.n_captions
        facts = {(name, data.n_images): source, data.source_sha256: source, name: data.revision}
        if any(known.setdefault(key, fact) != fact for key, fact in facts.items()):
            raise InputError(f"{where}: {record.cell.id} was scored on other items than other cells of {name} say.")


def check_record(where: str, manifest: RunManifest, record: Record) -> Data:
    """The data of a scored record, if it has all that such a record has, and sizes that can be."""
    if record.status != "ok" or record.data is None:
        raise InputError(f"{where} has the status '{record.status}'; expected ok, with data.")
    data, cell = record.data, record.cell
    _check_images(where, manifest, cell, data)
    if record.reason or record.dim is None or set(record.embeddings_sha256) != {"images", "texts"}:
        raise InputError(f"{where} was scored; expected dim and the embeddings' sha256, and no reason.")
    if max(data.n_captions, data.n_distractors) > _MAX_ITEMS or data.n_images > _MAX_IMAGES:
        raise InputError(f"{where} has more items than can be checked; expected at most {_MAX_IMAGES} images.")
    if max(data.n_distractors, data.n_unchanged) > max(data.n_images, data.n_captions):
        raise InputError(f"{where} has more distractors or unchanged items than items.")
    if bool(data.n_distractors) != (data.distractors_sha256 is not None):
        raise InputError(f"{where} has distractors without their sha256, or the other way round.")
    is_reranked = manifest.rerank_k is not None and cell.directions != ("i2i",)
    if is_reranked != (data.token_bytes is not None):
        raise InputError(f"{where} states token_bytes where run.json has no second stage, or the other way round.")
    if cell.is_attack != (record.attack is not None):
        raise InputError(f"{where} is{'' if cell.is_attack else ' no'} attack; its record says otherwise.")
    return data


def _check_images(where: str, manifest: RunManifest, cell: Cell, data: Data) -> None:
    whole = manifest.collections.get(cell.collection, 0)
    expected = min(whole, cell.n_images or whole)
    least = expected if manifest.limit is None else min(expected, manifest.limit)
    if not least <= data.n_images <= expected:
        raise InputError(f"{where} was scored on {data.n_images} images; its suite has {expected}.")


def check_report(where: str, manifest: RunManifest, cell: Cell, report: AttackReport, data: Data) -> None:
    """An attack of the budget, the items and the victim that its cell names, and a verdict that its checks give."""
    by_text = report.unit != "levels of 255"
    levels, edits = (0, report.budget) if by_text else (report.budget, int(cell.threat_model == "both"))
    if cell.shift.partition(":")[2] != str(report.budget):
        raise InputError(f"{where} states the budget {report.budget}; its cell says another.")
    if report.largest_change > levels or report.most_edits > edits:
        raise InputError(f"{where} states changes outside its budget of {report.budget} {report.unit}.")
    n_attacked = data.n_captions if by_text else data.n_images
    if report.n_attacked != n_attacked or not data.n_unchanged == report.n_unchanged <= n_attacked:
        raise InputError(f"{where} states {report.n_attacked} attacked items; expected {n_attacked}, and one count.")
    if report.victim != (cell.victim or manifest.label):
        raise InputError(f"{where} states the victim {report.victim}; expected {cell.victim or manifest.label}.")
    shares = [share for point in report.curve for share in (point.hit_1, point.asr_hits) if share is not None]
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"{where} has a curve whose shares are no fractions.")
    _check_verdict(where, cell, report)
    if not cell.victim and manifest.rerank_k is None and (cell.stage or report.objective != "retrieval"):
        raise InputError(f"{where} attacks a second stage; run.json has none.")


def _check_verdict(where: str, cell: Cell, report: AttackReport) -> None:
    failed = [check.name for check in report.checks if not check.passed]
    if cell.victim:
        is_right = report.verdict == "transferred" and not report.checks and not report.curve
    elif failed:
        is_right = report.verdict.startswith(f"unreliable: {failed[0]} (")
    else:
        is_right = report.verdict == "reliable" and bool(report.checks)
    if not is_right:
        raise InputError(f"{where} has the verdict '{report.verdict}', which its checks do not give.")
