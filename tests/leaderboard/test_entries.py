"""Entries: figures against a plain recomputation from the evidence, and a cache that never stands for other files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

import leaderboard.entries
from bench.bundle import make_bundle, read_results, validate_bundle
from bench.errors import InputError
from bench.run import RunResult
from bench.store import cache_folder
from leaderboard import entries
from leaderboard.entries import N_RANK_RESAMPLES, read_entry, read_reference, summarise_bundle


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


def hits_of(bundle: Path, shift: str) -> dict[str, np.ndarray]:
    """Whether each query finds a positive first, from the bare evidence."""
    results = read_results(bundle)
    cells = ((record, record.cell) for record in results.records)
    record = next(record for record, cell in cells if (cell.collection, cell.shift) == ("scenes/test", shift))
    return {name: part.ranks.best == 1 for name, part in results.evidence(record).items()}


def mean_r1(bundle: Path, shift: str, directions: tuple[str, ...] = ("t2i", "i2t")) -> float:
    return float(np.mean([hits_of(bundle, shift)[direction].mean() for direction in directions]))


def test_a_family_is_the_mean_of_its_shifts_and_these_of_their_severities(bundle: Path) -> None:
    entry = read_entry(bundle).entry
    noise = np.mean([mean_r1(bundle, f"gaussian_noise:{severity}") for severity in (1, 5)])
    clean = mean_r1(bundle, "clean_canvas")
    assert entry.shifts["gaussian_noise"].r1.value == pytest.approx(noise)
    assert entry.families["noise"].lost.value == pytest.approx(1 - noise / clean)
    mix, danger = mean_r1(bundle, "gallery_mix:4", ("t2i",)), mean_r1(bundle, "gallery_danger:1", ("i2t",))
    assert entry.families["gallery"].r1.value == pytest.approx((mix + danger) / 2)
    assert entry.overall is not None
    assert entry.overall.r1.value == pytest.approx(np.mean([held.r1.value for held in entry.families.values()]))
    assert entry.worst == max(entry.shifts, key=lambda name: entry.shifts[name].lost.value)


def test_the_worst_tenth_is_that_of_queries_over_all_shifts(bundle: Path) -> None:
    names = ("gaussian_noise:1", "gaussian_noise:5", "typo_keyboard:3", "gallery_mix:4", "gallery_danger:1")
    deciles = []
    for direction in ("t2i", "i2t"):
        found = [hits[direction] for hits in (hits_of(bundle, name) for name in names) if direction in hits]
        worst_first = np.sort(np.mean(found, axis=0))
        share = 0.1 * worst_first.size
        whole = int(share)
        deciles.append((worst_first[:whole].sum() + (share - whole) * worst_first[whole]) / share)
    estimate = read_entry(bundle).entry.worst_decile
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(deciles))
    assert estimate.low <= estimate.value <= estimate.high


def test_mce_counts_errors_in_those_of_the_reference(bundle: Path) -> None:
    itself = read_entry(bundle, read_reference(bundle)).entry
    assert itself.mce is not None
    assert (itself.mce.low, itself.mce.value, itself.mce.high) == pytest.approx((1, 1, 1))
    assert read_entry(bundle).entry.mce is None


def test_mce_is_the_mean_over_shifts_of_ratios_of_sums(bundle: Path) -> None:
    results = validate_bundle(bundle)
    reference = read_reference(bundle)
    for record in reference.scores.records:  # a reference that makes half of the errors in every cell
        found = reference.scores.by_direction(record).items()
        halved = {direction: (0.5 + value / 2, 0.5 + replicates / 2) for direction, (value, replicates) in found}
        reference.scores._known[record.cell.slug] = halved
    entry = summarise_bundle(results, "0" * 64, reference).entry
    assert entry.mce is not None
    assert entry.mce.value == pytest.approx(2)


def test_where_entries_are_cached_no_bundle_is_validated_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_entry(bundle, read_reference(bundle)).entry

    def validate_again(folder: Path) -> None:
        raise AssertionError(f"{folder} was validated again")

    monkeypatch.setattr(entries, "validate_bundle", validate_again)
    assert read_entry(bundle, read_reference(bundle)).entry == first
    monkeypatch.setenv("ROVE_CACHE", f"{bundle}-elsewhere")
    with pytest.raises(AssertionError, match="was validated again"):
        read_reference(bundle)


def test_the_tables_hold_every_images_hits(bundle: Path) -> None:
    hits = read_entry(bundle).hits
    place = hits.names.index("scenes-test-gaussian_noise-5/t2i")
    start, n_images = sum(hits.n_images[:place]), hits.n_images[place]
    found = np.frombuffer(zlib.decompress(hits.hits), np.uint8)[start : start + n_images]
    queries = np.frombuffer(zlib.decompress(hits.queries), np.uint8)[start : start + n_images]
    evidence = read_results(bundle)
    images = next(
        evidence.evidence(record)["t2i"].images
        for record in evidence.records
        if record.cell.shift == "gaussian_noise:5"
    )
    assert queries.tolist() == np.bincount(images).tolist()
    assert found.sum() == hits_of(bundle, "gaussian_noise:5")["t2i"].sum()


def test_resamples_are_those_of_the_intervals(bundle: Path) -> None:
    entry, resamples, _ = read_entry(bundle)
    assert resamples.r1.shape == (len(entry.families), N_RANK_RESAMPLES)
    overall = np.mean(resamples.r1, axis=0, dtype=np.float64)
    assert entry.overall is not None
    assert np.quantile(overall, 0.025) == pytest.approx(entry.overall.r1.low, abs=0.02)
    assert overall.mean() == pytest.approx(entry.overall.r1.value, abs=0.01)


def test_a_bundle_is_summarised_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_entry(bundle)
    monkeypatch.setattr(leaderboard.entries, "validate_bundle", None)
    again = read_entry(bundle)
    assert again.entry == first.entry
    assert list(again.entry.families) == list(first.entry.families) == ["noise", "typo", "gallery", "domain"]
    assert again.hits.hits == first.hits.hits
    assert np.array_equal(again.resamples.lost, first.resamples.lost, equal_nan=True)


def test_a_changed_file_is_found_behind_the_cache(bundle: Path) -> None:
    read_entry(bundle)
    record = next((bundle / "cells").glob("*.json"))
    record.write_bytes(record.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(InputError, match="sha256"):
        read_entry(bundle)


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: data[:900] + b"\0" + data[901:]])
def test_a_damaged_cache_is_made_anew(bundle: Path, damage: object) -> None:
    first = read_entry(bundle)
    (cached,) = (cache_folder() / "entries").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))  # type: ignore[operator]
    assert read_entry(bundle).entry == first.entry
    assert cached.read_bytes() == whole


def test_a_limited_run_takes_no_part_in_the_order(bundle: Path) -> None:
    results = validate_bundle(bundle)
    manifest = results.manifest.model_copy(update={"limit": 8})
    limited = type(results)(results.folder, manifest, results.records, results.timings)
    assert "first 8 images" in summarise_bundle(limited, "0" * 64).entry.unranked


def test_the_same_items_are_the_same_however_many_stages_rank_them(bundle: Path) -> None:
    data = read_results(bundle).records[0].data
    assert data is not None
    assert data.model_copy(update={"token_bytes": 64, "revision": "a mirror"}).items == data.items
    assert data.model_copy(update={"images_sha256": "0" * 64}).items != data.items
