"""The claims about parameter-efficient and robust fine-tuning, answered by finished runs of one suite.

    python tests/benchmarks/recipe_claims.py BASE FULL RUN...
    python tests/benchmarks/recipe_claims.py --attacks RUN...

BASE is a run of what the others were fitted from, FULL one of full fine-tuning; both are rows too. Prints a Markdown
table: parameters that learnt and their share of the base, mean R@1 of both directions on clean images and its ratio to
FULL's, R@1 under shift, the share of the clean R@1 that is lost, training time against as many steps of full
fine-tuning. Every ratio has a 95 % interval from resamples that all runs share. With --attacks: R@1 of each run under
each attacked cell, a note where the sanity checks did not pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.bundle import Results, read_results
from bench.records import Estimate
from bench.stats import interval
from bench.summary import AttackSummary, Replicated, Scores, Summary, main_canvas, mean_held, summarise_run

HEAD = ("", "learnt", "% of base", "clean R@1", "of full's", "R@1 under shift", "lost", "time")


def main() -> None:
    if sys.argv[1] == "--attacks":
        print_attacks([summarise_run(Path(path)) for path in sys.argv[2:]])
    else:
        print_claims()


def print_attacks(runs: Sequence[Summary]) -> None:
    """One column a run; the clean R@1 of an attacked cell's images stands before the first cell that has them."""
    print("| | " + " | ".join(f"`{run.label}`" for run in runs) + " |\n| --- |" + " --- |" * len(runs))
    lines = (line for parts in zip(*(run.attacks for run in runs), strict=True) for line in _attack_lines(parts))
    print(*dict.fromkeys(lines), sep="\n")


def _attack_lines(parts: Sequence[AttackSummary]) -> Iterator[str]:
    marks = ["" if part.verdict == "reliable" else f" ({part.verdict})" for part in parts]
    for direction in parts[0].attacked:
        clean = [_shown(part.clean[direction]) for part in parts]
        attacked = [f"{_shown(part.attacked[direction])}{mark}" for part, mark in zip(parts, marks, strict=True)]
        yield "| " + " | ".join([f"clean {direction}", *clean]) + " |"
        yield "| " + " | ".join([f"{parts[0].cell} {direction}", *attacked]) + " |"


def _shown(one: Estimate) -> str:
    return f"{100 * one.value:.0f} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def print_claims() -> None:
    base, full, *others = (read_results(Path(path)) for path in sys.argv[1:])
    n_base = base.manifest.parameters or 0
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    for results in (base, full, *others):
        print("| " + " | ".join(_row(results, clean_r1(full), n_base)) + " |")


def clean_r1(results: Results) -> Replicated:
    """Mean R@1 of both directions on the clean canvas, with its resamples."""
    scores = Scores(results)
    canvas = main_canvas(scores)
    if canvas is None:
        raise SystemExit(f"{results.folder} has no clean canvas.")
    return scores.of(canvas)


def _row(results: Results, full: Replicated, n_base: int) -> list[str]:
    manifest = results.manifest.submission
    learnt, fit = manifest.parameters.trainable, manifest.fit
    clean, held = clean_r1(results), mean_held(list(Scores(results).families.values()))
    return [
        f"`{results.manifest.label}`",
        "" if learnt is None else f"{learnt:,}",
        "" if learnt is None else f"{100 * learnt / n_base:.2f}",
        _percent(clean),
        _percent((clean[0] / full[0], clean[1] / full[1])),
        _percent(held.r1),
        _percent(held.lost),
        "" if fit is None or fit.relative_seconds is None else f"{fit.relative_seconds:.2f}",
    ]


def _percent(part: Replicated) -> str:
    found = interval(part[1])
    return f"{100 * part[0]:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


if __name__ == "__main__":
    main()
