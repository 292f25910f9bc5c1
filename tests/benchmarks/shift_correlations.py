"""Which shifts tell nothing new: how alike they are in which images and captions they make hard for a submission.

    python tests/benchmarks/shift_correlations.py RUN [RUN ...] [--modality image|text] [--keep N | --chosen A,B,...]

A run's shift is a vector over its images: how much the log rank of the right answer grows against the clean canvas,
averaged over severities, directions and the image's queries. Vectors are correlated over images (Spearman, averaged
over runs); shifts are kept one by one, each time the one that raises the mean, over all shifts, of the correlation with
the nearest one kept. The row of a shift shows what its own first half of the severities says of the second: the
ceiling that correlations have here.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from bench.bundle import Results, read_results
from bench.evidence import Evidence
from bench.records import Record
from shifts.catalogue import find_shift


def hardness(results: Results, record: Record) -> np.ndarray:
    """Mean over directions of the mean log rank of each image's queries, (n_images,)."""
    assert record.data is not None
    evidence = results.evidence(record)
    return np.mean([_mean_log_rank(part, record.data.n_images) for part in evidence.values()], axis=0)


def _mean_log_rank(part: Evidence, n_images: int) -> np.ndarray:
    best = part.ranks.pessimistic[part.ranks.offsets[:-1]]
    counts = np.bincount(part.images, minlength=n_images)
    return np.bincount(part.images, np.log(best), minlength=n_images) / np.maximum(counts, 1)


def vectors_of(run: Path, modality: str) -> dict[str, dict[int, np.ndarray]]:
    """By shift and severity, how much harder each image has become."""
    results = read_results(run)
    records = [record for record in results.records if record.status == "ok" and not record.cell.baseline]
    collection = Counter(record.cell.collection for record in records).most_common(1)[0][0]
    records = [record for record in records if record.cell.collection == collection]
    canvas = next(record for record in records if record.cell.shift == "clean_canvas")
    clean = hardness(results, canvas)
    found: dict[str, dict[int, np.ndarray]] = {}
    for record in records:
        name, _, severity = record.cell.shift.partition(":")
        if severity and find_shift(name).modality == modality:
            found.setdefault(name, {})[int(severity)] = hardness(results, record) - clean
    return found


def spearman(rows: np.ndarray) -> np.ndarray:
    return np.corrcoef(np.stack([rankdata(row) for row in rows]))


def ceiling(severities: dict[int, np.ndarray]) -> float:
    """Correlation between a shift's odd and even severities; nan where it has one."""
    parts = [[v for s, v in severities.items() if s % 2 == odd] for odd in (0, 1)]
    if not all(parts):
        return float("nan")
    return float(spearman(np.stack([np.mean(part, axis=0) for part in parts]))[0, 1])


def keep_greedily(correlations: np.ndarray, n_kept: int) -> list[int]:
    """Places of the shifts to keep, in the order in which they are chosen."""
    kept: list[int] = []
    nearest = np.full(len(correlations), -1.0)
    for _ in range(n_kept):
        gains = np.maximum(correlations, nearest[:, None]).mean(axis=0)
        gains[kept] = -np.inf
        kept.append(int(gains.argmax()))
        nearest = np.maximum(nearest, correlations[:, kept[-1]])
    return kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--modality", default="image")
    parser.add_argument("--keep", type=int, default=10)
    parser.add_argument("--chosen", default="", help="comma-separated names to keep instead")
    arguments = parser.parse_args()
    runs = [vectors_of(run, arguments.modality) for run in arguments.runs]
    known = [name for name in runs[0] if all(name in run for run in runs)]
    names = [name for name in known if all(np.ptp(np.mean(list(run[name].values()), axis=0)) > 0 for run in runs)]
    print(f"without any effect on one of the runs: {', '.join(sorted(set(known) - set(names))) or 'none'}")
    means = [np.stack([np.mean(list(run[name].values()), axis=0) for name in names]) for run in runs]
    correlations = np.mean([spearman(rows) for rows in means], axis=0)
    chosen = [names.index(name) for name in arguments.chosen.split(",") if name]
    kept = chosen or keep_greedily(correlations, min(arguments.keep, len(names)))
    print(f"{'shift':<30}{'harder by':>10}{'own halves':>12}{'nearest kept':>30}{'correlation':>13}{'most alike':>30}")
    for i, name in enumerate(names):
        others = [k for k in kept if k != i]
        near = max(others, key=lambda k: correlations[i, k])
        alike = max((j for j in range(len(names)) if j != i), key=lambda j: correlations[i, j])
        own = np.mean([ceiling(run[name]) for run in runs])
        harder = np.mean([rows[i].mean() for rows in means])
        mark = f"{kept.index(i) + 1:>3}" if i in kept else "   "
        print(
            f"{mark} {name:<26}{harder:>10.2f}{own:>12.2f}{names[near]:>30}{correlations[i, near]:>13.2f}"
            f"{names[alike]:>22} {correlations[i, alike]:.2f}"
        )
    left_out = [i for i in range(len(names)) if i not in kept]
    nearest = correlations[np.ix_(left_out, kept)].max(axis=1)
    print(f"kept: {', '.join(names[k] for k in kept)}")
    print(f"mean correlation of the {len(left_out)} left out with the nearest kept: {nearest.mean():.2f}")
    severities = sorted({severity for run in runs for name in names for severity in run[name]})
    for severity in severities:
        rows = [run[name][severity].mean() for run in runs for name in names if severity in run[name]]
        print(f"severity {severity}: {len(rows)} shifts, log rank grows by {np.mean(rows):.3f} on average")


if __name__ == "__main__":
    main()
