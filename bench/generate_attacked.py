"""Attacked copies of a collection as Parquet files that the `datasets` library opens: the victim's crops, and for each
attack what was made of them or of the captions. While they are made, the examples lie beside them batch by batch, so
that the same command goes on after an interruption.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench.attack import verify_budget
from bench.crafting import Crafter, Plan, Sides, make_aim
from bench.data.registry import load_collection
from bench.embed import Embedder
from bench.errors import UsageError
from bench.evaluate import to_unit
from bench.examples import EXAMPLES, Examples, Role, pixels_of
from bench.generate import SHARD_IMAGES, GenerateObserver, captions_by_image, check_free, fill, plan_of, to_png
from bench.generated import GeneratedManifest, Part, config_name
from bench.generated import Plan as Inputs
from bench.shifted import caption_ids, processor_name, versions
from bench.store import cache_folder, sha256_of, write_atomic
from bench.submission import Submission
from bench.types import Collection
from bench.worker.host import WorkerSettings
from shifts.attacks.catalogue import Attack

CROPS = "crops"


@dataclass(frozen=True)
class AttackedSettings:
    """What the command line says about a data set to be attacked.

    Args:
        dataset: NAME[/SPLIT] or FORMAT:PATH[/SPLIT].
        attacks: with their budgets.
        victim: the submission that the items are made against.
        role: what the attacked items are in the retrieval; attacks on both sides have `both`.
        limit: only the first images.
    """

    dataset: str
    attacks: tuple[tuple[Attack, int], ...]
    victim: Submission
    role: Role = "query"
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    batch_size: int = 32
    worker: WorkerSettings = field(default_factory=WorkerSettings)


def generate_attacked(settings: AttackedSettings, output: Path, observer: GenerateObserver) -> GeneratedManifest:
    """Writes the attacked copies to `output`, or what of them is not there yet.

    Raises:
        UsageError: `output` holds something else, another process writes to it, or the victim gives no gradient.
        InputError: the data set cannot be used.
        SubmissionError: the victim failed.
        MissingError: a package that an attack needs is missing.
    """
    check_free(output)
    collection = load_collection(settings.dataset, data_dirs=settings.data_dirs, offline=settings.worker.offline)
    collection = collection if settings.limit is None else collection.head(settings.limit)
    inputs = _inputs(settings, collection)
    return fill(output, inputs, lambda: _make_parts(settings, collection, output, observer), {})


def _inputs(settings: AttackedSettings, collection: Collection) -> Inputs:
    names = [CROPS, *(attack.id(budget) for attack, budget in settings.attacks)]
    victim = {"victim": settings.victim.label, "victim_fingerprint": settings.victim.fingerprint}
    return plan_of(collection, settings.seed, names, **victim, role=settings.role)


def _make_parts(
    settings: AttackedSettings, collection: Collection, output: Path, observer: GenerateObserver
) -> Iterator[Part]:
    surroundings = {**versions(), "processor": processor_name()}
    make = (settings.victim, settings.worker)
    with (
        Embedder(*make, cache_folder(), settings.batch_size, surroundings) as embedder,
        closing(Crafter(*make, settings.batch_size, output / EXAMPLES, surroundings)) as crafter,
    ):
        _check_applicable(settings, crafter)
        counts = {"text": len(collection.captions)}
        n_items = sum(counts.get(attack.modality, len(collection.images)) for attack, _ in settings.attacks)
        observer.planned(n_items)
        crops = crafter.crops(collection)
        images = embedder.images(*pixels_of(collection, crops), lambda count: None)
        texts = embedder.texts(list(collection.captions), lambda count: None)
        sides = Sides(*(torch.from_numpy(to_unit(part.vectors)) for part in (images, texts)))
        yield _write_part(output, CROPS, 0, collection, crops, with_images=True, facts=_facts(settings))
        for attack, budget in settings.attacks:
            role: Role = "both" if attack.modality == "joint" else settings.role
            plan = Plan(attack, budget, role, "", settings.seed)
            name = attack.id(budget)
            done = _counter(observer, name)
            examples = crafter.attack(plan, collection, crops, make_aim(plan, collection, sides), done)
            verify_budget(plan, collection, crops, examples)
            facts = _facts(settings, attack, budget, role)
            with_images = attack.modality != "text"
            yield _write_part(output, name, attack.version, collection, examples, with_images, facts)
    shutil.rmtree(output / EXAMPLES)


def _check_applicable(settings: AttackedSettings, crafter: Crafter) -> None:
    blind = next((attack for attack, _ in settings.attacks if attack.access == "white"), None)
    if blind and not crafter.victim.differentiable:
        raise UsageError(
            f"{blind.name} needs a gradient, which {settings.victim.label} does not give; "
            "`rove list attacks` shows the black-box ones."
        )


def _counter(observer: GenerateObserver, name: str) -> Any:
    return lambda count: observer.shard_done(name, count)


def _facts(settings: AttackedSettings, attack: Attack | None = None, budget: int = 0, role: str = "") -> dict[str, Any]:
    """The attack's parameters, which stand on every row."""
    return {
        "attack": attack.name if attack else CROPS,
        "attack_version": attack.version if attack else 0,
        "budget": budget,
        "unit": attack.unit if attack else "",
        "role": role,
        "victim": settings.victim.label,
        "seed": settings.seed,
    }


def _write_part(
    output: Path,
    name: str,
    version: int,
    collection: Collection,
    examples: Examples,
    with_images: bool,
    facts: Mapping[str, Any],
) -> Part:
    """One configuration, one row an image."""
    ids, captions_of = caption_ids(collection), captions_by_image(collection)
    schema, config = _schema(with_images), config_name(name)
    files: dict[str, str] = {}
    for number, start in enumerate(range(0, len(collection.images), SHARD_IMAGES)):
        rows = [
            {
                **(to_png(image.id, examples.images[index].pixels) if with_images else {}),
                "image_id": image.id,
                "captions": [examples.captions[i] for i in captions_of[index]],
                "caption_ids": [ids[i] for i in captions_of[index]],
                "original_captions": [collection.captions[i] for i in captions_of[index]],
                **facts,
            }
            for index, image in enumerate(collection.images[start : start + SHARD_IMAGES], start)
        ]
        path = f"data/{config}/{number:05d}.parquet"
        buffer = io.BytesIO()
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, buffer, compression="none" if with_images else "zstd")
        write_atomic(output / path, buffer.getvalue())
        files[path] = sha256_of(output / path)
    changed = [a != b for a, b in zip(examples.captions, collection.captions, strict=True)]
    return Part(
        config=config,
        shift=name,
        kind="images" if with_images else "captions",
        version=version,
        n_rows=len(collection.images),
        n_unchanged=0 if with_images else changed.count(False),
        content_sha256=examples.sha256,
        files=files,
    )


def _schema(with_images: bool) -> pa.Schema:
    """The columns, with the metadata by which `datasets` knows images from bytes."""
    from datasets import Features, Image, List, Value

    text, whole, texts = Value("string"), Value("int32"), List(Value("string"))
    pixels = {"image": Image(), "pixels_sha256": text} if with_images else {}
    named = {"attack": text, "attack_version": whole, "budget": whole, "unit": text, "role": text, "victim": text}
    captions = {"image_id": text, "captions": texts, "caption_ids": texts, "original_captions": texts}
    return Features({**pixels, **captions, **named, "seed": Value("int64")}).arrow_schema
