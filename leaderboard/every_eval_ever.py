"""A row's scores in the schema of Every Eval Ever, so that they can be read beside those of other benchmarks.

Nearly everything has a place there: each cell and metric is an evaluation result with its interval. Two things have
not. The schema asks for a model's name on the hub; a submission has a label, and its author's names beside it. And it
asks who the evaluator is to the model's developer; whoever sends a bundle ran it, and the leaderboard does not know
whether that is the developer, so that `other` stands there with this explanation.

Source: schema of the package every-eval-ever 0.3.0 (arXiv:2606.14516).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.errors import InputError
from bench.metrics import find_metric
from bench.records import Cell, Estimate
from bench.stats import LEVEL, N_RESAMPLES
from leaderboard.entries import Attacked, Entry, Score

SCHEMA_VERSION = "0.3.0"
_NAMESPACE = "rove"
_EVALUATOR = "whoever sent the bundle ran it; every metric was recomputed from its evidence per query"
_METHOD = "percentile bootstrap over images, each with its captions"


def export_entry(entry: Entry, retrieved: int) -> dict[str, Any]:
    """The entry as plain data, valid under the schema: one result for each cell, direction and metric.

    Args:
        entry: of one bundle.
        retrieved: when this is written, in seconds since 1970. What identifies the record does not depend on it.

    Raises:
        InputError: the manifest does not say how many images a collection has.
    """
    manifest = entry.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{_NAMESPACE}.{manifest.suite}/{entry.label}/{entry.bundle_sha256}",
        "retrieved_timestamp": str(retrieved),
        "source_metadata": {
            "source_name": "Rove leaderboard",
            "source_type": "evaluation_run",
            "source_organization_name": "Rove",
            "evaluator_relationship": "other",
            "additional_details": {"evaluator": _EVALUATOR, "bundle_sha256": entry.bundle_sha256},
        },
        "eval_library": _library(entry),
        "model_info": _model(entry),
        "evaluation_results": [
            *(result for score in entry.scores for result in _score_results(entry, score)),
            *(result for attack in entry.attacks for result in _attack_results(entry, attack)),
        ],
    }


def _library(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest
    details = {"suite": manifest.suite, "suite_id": manifest.suite_id, "command": manifest.command}
    return {"name": _NAMESPACE, "version": manifest.environment.rove, "additional_details": _given(details)}


def _model(entry: Entry) -> dict[str, Any]:
    """What the submission's manifest states of the model; what it leaves open is `unknown`, or absent."""
    manifest, stated = entry.manifest, entry.manifest.submission
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "unknown",
        "authors": ", ".join(stated.authors),
        "license": stated.license,
        "url": str(stated.url or ""),
        "method": stated.method,
        "base": stated.base,
        "trained_on": ", ".join(stated.trained_on),
        "arguments": " ".join(f"{key}={value}" for key, value in sorted(manifest.args.items())),
        "parameters": "" if manifest.parameters is None else str(manifest.parameters),
        "weights_sha256": manifest.weights_sha256 or "",
        "dtype": manifest.dtype,
        "device": manifest.environment.device,
    }
    return {"name": stated.title or entry.label, "id": entry.label, "additional_details": _given(details)}


def _score_results(entry: Entry, score: Score) -> Iterator[dict[str, Any]]:
    cell, n_images = score.cell, _count_images(entry, score.cell)
    facts = {"family": score.family, "flags": " ".join(score.flags), "items": score.items}
    for direction, metrics in score.metrics.items():
        for metric, value in metrics.items():
            yield _result(entry, cell, direction, _metric_config(metric), value, n_images, facts)
    if score.lost is not None:
        yield _result(entry, cell, "mean", _LOST, score.lost, n_images, facts)


def _attack_results(entry: Entry, attack: Attacked) -> Iterator[dict[str, Any]]:
    facts = {"budget": str(attack.budget), "unit": attack.unit, "verdict": attack.verdict}
    values = [(_ATTACKED, attack.attacked)] + ([] if attack.asr is None else [(_ASR, attack.asr)])
    for config, value in values:
        yield _result(entry, attack.cell, attack.direction, config, value, attack.n_images, facts)


def _result(
    entry: Entry,
    cell: Cell,
    direction: str,
    config: Mapping[str, Any],
    value: Estimate,
    n_images: int,
    facts: Mapping[str, str],
) -> dict[str, Any]:
    """One number with its interval, what it is of, and what it means."""
    what = {"cell": cell.id, "shift": cell.shift, "baseline": cell.baseline, "threat_model": cell.threat_model}
    interval = {"lower": value.low, "upper": value.high, "confidence_level": LEVEL, "method": _METHOD}
    return {
        "evaluation_result_id": f"{cell.slug}/{direction}/{config['metric_id']}",
        "evaluation_name": f"{_NAMESPACE}.{entry.manifest.suite}.{cell.slug}.{direction}",
        "source_data": {
            "dataset_name": cell.collection,
            "source_type": "other",
            "additional_details": _given({**what, "direction": direction, "n_images": str(n_images), **facts}),
        },
        "metric_config": dict(config),
        "score_details": {
            "score": value.value,
            "uncertainty": {
                "confidence_interval": interval,
                "num_samples": n_images,
                "num_bootstrap_samples": N_RESAMPLES,
            },
        },
    }


def _metric_config(metric: str) -> dict[str, Any]:
    """Meaning and bounds of one of `entries.SHOWN_METRICS`."""
    if metric == "rsum":
        description = "sum of R@1, R@5 and R@10 over both directions"
        return _config("rsum", "RSUM", description, unit="percent", highest=600)
    known = find_metric(metric)
    return _config(known.id, known.name, f"{known.name}, mean over queries", unit="proportion", highest=1)


def _config(
    metric: str, name: str, description: str, unit: str, highest: int, *, lowest: int | str = 0, lower: bool = False
) -> dict[str, Any]:
    return {
        "metric_id": f"{_NAMESPACE}.{metric}",
        "metric_name": name,
        "metric_unit": unit,
        "evaluation_description": description,
        "lower_is_better": lower,
        "score_type": "continuous",
        "min_score": lowest,
        "max_score": highest,
    }


def _count_images(entry: Entry, cell: Cell) -> int:
    """How many images a cell was scored on; fewer than it has if the run was limited.

    Raises:
        InputError: the manifest does not say.
    """
    whole = cell.n_images or entry.manifest.collections.get(cell.collection)
    if whole is None:
        raise InputError(f"run.json of {entry.label} does not say how many images {cell.collection} has.")
    return min(whole, entry.manifest.limit or whole)


def _given(details: Mapping[str, str]) -> dict[str, str]:
    """Those that are stated."""
    return {key: value for key, value in details.items() if value}


_LOST = _config(
    "lost",
    "R@1 lost",
    "share of the clean canvas's mean R@1 that is lost; negative where the shift helps",
    unit="proportion",
    highest=1,
    lowest="-Infinity",
    lower=True,
)
_ATTACKED = _config("attacked_hit@1", "attacked R@1", "R@1 on the attacked items", unit="proportion", highest=1)
_ASR = _config(
    "asr_hits@1",
    "attack success rate",
    "share of the clean hits at 1 that the attack takes away",
    unit="proportion",
    highest=1,
    lower=True,
)
