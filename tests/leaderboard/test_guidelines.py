"""Guidelines: on made boards the sentences follow the figures; test_results.py has those that ship."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from made_entries import NO_HITS, around, made_entry, made_resamples
from made_timings import GALLERY, latency, timing_of
from typer.testing import CliRunner

from bench.cli import recommending
from bench.errors import UsageError
from bench.records import Cell, Check, Fit, Parameters, TrainingData
from bench.submission import list_recipes
from bench.summary import Candidates
from leaderboard import boards
from leaderboard.boards import Board, Boards, Row, Source
from leaderboard.entries import Attacked, Entry, Hits
from leaderboard.guidelines import KINDS, attacked_recall, explain, find_base, find_kind
from leaderboard.ranking import rank

CPU = "Example CPU, 2 threads, cpu"


def entry_of(label: str, r1: float, lost: float = 0.2, clean: float = 0.6, **stated: Any) -> Entry:
    """An entry of one family, whose manifest states what is given."""
    entry = made_entry(label, families={"noise": (r1, lost)}, clean=clean, rerank_k=stated.pop("rerank_k", None))
    args = stated.get("args", {})
    submission = entry.manifest.submission.model_copy(update=stated)
    return entry.model_copy(
        update={"manifest": entry.manifest.model_copy(update={"submission": submission, "args": args})}
    )


def fit_of(recipe: str, seconds: float = 60.0, relative: float = 0.5) -> dict[str, Any]:
    """What a row that `recipe` has fitted on `base` states."""
    data = TrainingData(name="made/train", sha256="a" * 64, n_images=8, n_captions=8)
    fit = Fit(
        recipe=recipe,
        version=1,
        seed=0,
        data=[data],
        validation="made/val",
        seconds=seconds,
        relative_seconds=relative,
        saw_evaluation_data=False,
    )
    return {"base": "base", "fit": fit, "parameters": Parameters(total=1_000, trainable=20)}


def timed(entry: Entry, p50_ms: float) -> Entry:
    """The entry with a timing among a thousand items."""
    record = timing_of(entry.manifest, rerank_k=entry.manifest.rerank_k or 0, hardware_class=CPU)
    alone = record.served[0].model_copy(update={"stages": {"end_to_end": latency(p50_ms)}})
    gallery = GALLERY.model_copy(update={"n_real": 1_000, "n_synthetic": 0})
    record = record.model_copy(update={"served": (alone,), "gallery": gallery, "flags": ()})
    return entry.model_copy(update={"timings": (record,)})


def board_of(entries: Sequence[Entry], hits: Sequence[Hits] | None = None) -> Board:
    """Rows whose resamples share what is easy about each."""
    shared = np.random.Generator(np.random.Philox(0)).standard_normal(500)
    rng = np.random.Generator(np.random.Philox(1))
    tables = [made_resamples(entry, rng, shared, n_resamples=500) for entry in entries]
    rows = [
        Row(entry.label, entry, table, own, standing, Source(Path(entry.label), None))
        for entry, table, own, standing in zip(
            entries, tables, hits or [NO_HITS] * len(entries), rank(entries, tables), strict=True
        )
    ]
    return Board("made-v1", "made-v1", None, tuple(sorted(rows, key=lambda row: row.standing.order)), (), ())


def said(board: Board) -> str:
    """The guidelines in one line."""
    return " ".join(explain([board]).split())


@pytest.mark.parametrize(
    ("r1", "expected"),
    [(0.55, "up in 1 of 1 (`tuned` +10.0"), (0.35, "down in 1 of 1 (`tuned` -10.0"), (0.452, "not told")],
)
def test_a_gain_a_loss_and_neither_are_told_apart(r1: float, expected: str) -> None:
    board = board_of([entry_of("base", 0.45), entry_of("tuned", r1, **fit_of("lora"))])
    assert f"**Parameter-efficient tuning** (`tuned`; from `base`): clean R@1 not told in 1 of 1; R@1 under shift {expected}" in said(board)  # fmt: skip  # noqa: E501


def test_the_best_its_ties_and_the_smallest_of_them() -> None:
    large = made_entry("large", families={"noise": (0.6, 0.2)}, parameters=900)
    small = made_entry("small", families={"noise": (0.595, 0.2)}, parameters=100)
    poor = made_entry("poor", families={"noise": (0.3, 0.2)}, parameters=10)
    text = said(board_of([poor, small, large]))
    assert "**Most found under shift**: `large` with 60.0 [57.5, 62.5]. Not told apart from `small`" in text
    assert "**Smallest that is not told apart from it**: `small`, 100 parameters; R@1 under shift -0.5" in text
    assert "**By parameters**: from 10 on `poor` with 30.0 [27.5, 32.5]; from 100 on `small` with 59.5" in text
    apart = said(board_of([poor, made_entry("small", families={"noise": (0.5, 0.2)}, parameters=100), large]))
    assert "`large` with 60.0 [57.5, 62.5]. Told apart from all 2 others." in apart
    assert "**Smallest that is not told apart from it**: it is so itself, `large`, 900 parameters." in apart


def test_among_recipes_that_gain_alike_the_cheapest_are_named() -> None:
    dear = entry_of("dear", 0.56, **fit_of("full", relative=1.0) | {"parameters": Parameters(trainable=1_000)})
    lean = entry_of("lean", 0.557, **fit_of("lora", relative=0.9))
    quick = entry_of("quick", 0.556, **fit_of("vpt", relative=0.4) | {"parameters": Parameters(trainable=70)})
    weak = entry_of("weak", 0.46, **fit_of("coop", relative=0.1))
    text = said(board_of([entry_of("base", 0.45), dear, lean, quick, weak]))
    assert "**Recipe on `base`**: `dear` gains most under shift, +11.0" in text
    assert "Not told apart from it: `lean`, `quick`. Of these `lean` learns fewest parameters, 20;" in text
    assert "`quick` takes least time, 0.40 of full fine-tuning's." in text
    level = said(board_of([entry_of("base", 0.56), dear, lean]))
    assert "**Recipe on `base`**: `dear` stands first, but no gain under shift can be told, 0.0" in level


@pytest.mark.parametrize(("r1", "verdict"), [(0.55, "pays"), (0.35, "costs"), (0.452, "cannot be told to pay")])
def test_a_second_stage_pays_costs_or_neither(r1: float, verdict: str) -> None:
    bound = Candidates(k=20, clean=around(0.9), shifted=around(0.8), lost=around(0.1), cells={})
    staged = entry_of("both", r1, rerank_k=20, args={"encoder": "./base", "reranker": "x"})
    staged = timed(staged.model_copy(update={"candidates": bound}), 30.0)
    text = said(board_of([timed(entry_of("base", 0.45), 10.0), staged]))
    assert f"**A second stage**, `both`: {verdict} under shift" in text
    assert "against `base` alone, 30.00 ms in place of 10.00." in text
    assert "and can be at most 80.0 [77.5, 82.5], the recall of its 20 candidates." in text
    assert "no row of this suite has one" in said(board_of([entry_of("base", 0.45)]))


def test_bases_and_kinds_follow_the_manifest() -> None:
    entries = [
        entry_of("base", 0.5),
        entry_of("tuned", 0.51, **fit_of("fare")),
        entry_of("tuned-0.5", 0.52, name="tuned", **fit_of("fare")),
        entry_of("base-int8", 0.53, name="base", args={"precision": "int8"}),
        entry_of("strange", 0.54, **fit_of("somebody_elses") | {"base": "elsewhere"}),
        entry_of("both", 0.55, rerank_k=5, args={"encoder": "/far/away/tuned", "reranker": "x"}),
    ]
    rows = board_of(entries).rows
    found = {row.entry.label: find_base(row, rows) for row in rows}
    assert {label: base.entry.label if base else None for label, base in found.items()} == {
        "base": None,
        "tuned": "base",
        "tuned-0.5": "base",
        "base-int8": "base",
        "strange": None,
        "both": "tuned",
    }
    kinds = {row.entry.label: find_kind(row) for row in rows}
    assert kinds["tuned"] == "adversarial training"
    assert kinds["base-int8"] == "other arguments"
    assert kinds["strange"] == "other recipe"
    assert kinds["both"] == "second stage"
    assert "What was gained by `strange`, `base`: they have no base on this board." in said(board_of(entries))


def test_kinds_are_of_recipes_that_there_are() -> None:
    """Those that need a base, whether or not all of them are here yet; nothing is misspelt."""
    recipes = {name for name, recipe in list_recipes().items() if recipe.needs_base}
    assert recipes & set(KINDS) >= {"full", "lora", "vpt", "fare"}


def attacked_entry(entry: Entry, verdict: str = "reliable") -> Entry:
    cell = Cell(collection="made/test", shift="pgd:2", threat_model="query", n_images=20, directions=("i2t",))
    part = Attacked(
        cell=cell,
        direction="i2t",
        budget=2,
        unit="levels of 255",
        n_images=20,
        clean=around(0.6),
        attacked=around(0.5),
        asr=None,
        verdict=verdict,
        checks=(Check(name="budget", passed=True),),
        curve=(),
    )
    return entry.model_copy(update={"attacks": (part,)})


def hits_of(hits: np.ndarray, queries: np.ndarray) -> Hits:
    """Of a clean cell, which is not to be counted, and an attacked one."""
    packed = [
        zlib.compress(np.concatenate([np.full(3, 9), part]).astype(np.uint8).tobytes()) for part in (hits, queries)
    ]
    name = "made-test-pgd-2-query/i2t"
    return Hits(("made-test-clean/i2t", name), ("a", "b"), (3, len(hits)), *packed)


def test_recall_under_attack_is_that_of_the_attacked_images_and_paired() -> None:
    rng = np.random.Generator(np.random.Philox(0))
    queries = rng.integers(1, 4, 20)
    weak = rng.binomial(queries, 0.3)
    strong = np.minimum(queries, weak + (rng.random(20) < 0.8))
    rows = board_of(
        [attacked_entry(entry_of("weak", 0.4)), attacked_entry(entry_of("strong", 0.5))],
        [hits_of(weak, queries), hits_of(strong, queries)],
    ).rows
    by_label = {row.entry.label: attacked_recall(row, ["made-test-pgd-2-query/i2t", "absent"]) for row in rows}
    assert by_label["weak"][0] == pytest.approx(weak.sum() / queries.sum())
    # A naive bootstrap over images, of the difference: the same images on both sides.
    drawn = rng.integers(20, size=(4_000, 20))
    naive = (strong - weak)[drawn].sum(axis=1) / queries[drawn].sum(axis=1)
    paired = by_label["strong"][1] - by_label["weak"][1]
    assert np.quantile(paired, [0.025, 0.975]) == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.05)
    assert attacked_recall(rows[0], ["absent"]) is None


def test_attacks_whose_checks_failed_are_left_out_and_said_so() -> None:
    ones = hits_of(np.ones(20), np.ones(20))
    fine, doubtful = entry_of("fine", 0.5), entry_of("doubtful", 0.4)
    text = said(board_of([attacked_entry(fine), attacked_entry(doubtful)], [ones, ones]))
    assert "**Most found under attack**: `fine` with 100.0" in text
    assert "Attacks: 1 cells and directions of 20 images each" in text
    text = said(board_of([attacked_entry(fine), attacked_entry(doubtful, "unreliable: odd")], [ones, ones]))
    assert "Most found under attack" not in text
    assert "there is no attacked cell that every row has and whose checks passed" in text


def test_what_was_not_timed_and_not_ranked_is_said() -> None:
    board = board_of([timed(entry_of("fast", 0.5), 3.0), entry_of("untimed", 0.4)])
    board = replace(board, unranked=(boards.Unranked("half", "lacks 3 of 9 cells"),))
    text = said(board)
    assert f"one query among 1,000 items on {CPU}, 1 row timed: from 3.00 ms on `fast`" in text
    assert f"Latency of `untimed`: not timed, with one query among 1,000 items on {CPU}." in text
    assert "Anything of `half`: not ranked, lacks 3 of 9 cells." in text


def test_two_suites_of_seventeen_and_fourteen_rows_stay_short() -> None:
    recipes = [*KINDS][:14]

    def board(n_rows: int) -> Board:
        tuned = [
            entry_of(f"tiny-{recipe}", 0.4 + 0.01 * place, **fit_of(recipe))
            for place, recipe in enumerate(recipes[: n_rows - 1])
        ]
        others = [entry_of(f"alone-{place}", 0.3) for place in range(n_rows - 1 - len(tuned))]
        return board_of([entry_of("base", 0.4), *tuned, *others])

    text = explain([board(17), board(14)])
    assert len(text.splitlines()) <= 120
    assert explain([board(17), board(14)]) == text


def test_the_command_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Boards((board_of([entry_of("base", 0.45)]),), ())
    monkeypatch.setattr(boards, "read_boards", lambda places: found)
    app = typer.Typer()
    recommending.register(app)
    shown = CliRunner().invoke(app, ["--explain", "--suite", "made"])
    assert shown.stdout == explain(found.boards)
    path = tmp_path / "guidelines.md"
    assert CliRunner().invoke(app, ["--explain", "--output", str(path)]).exit_code == 0
    assert path.read_text() == explain(found.boards)
    for wrong in (["--explain", "--max-drop", "5"], ["--explain", "--json"], ["--output", str(path)]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, UsageError)
