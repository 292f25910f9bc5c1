"""Scores in the schema of Every Eval Ever: valid there, and saying what the entry says."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_entries import COLLECTION, around, made_entry, made_manifest

from bench.errors import InputError
from bench.records import Cell, CurvePoint
from bench.stats import N_RESAMPLES
from leaderboard.entries import Attacked, Entry
from leaderboard.every_eval_ever import export_entry

SCHEMA = Path(__file__).parent / "every_eval_ever_schema"
PGD = Cell(collection=COLLECTION, shift="pgd:2", threat_model="query", n_images=100, directions=("t2i",))


@pytest.fixture(scope="module")
def entry() -> Entry:
    attack = Attacked(
        cell=PGD,
        direction="t2i",
        budget=2,
        unit="levels of 255",
        n_images=100,
        clean=around(0.5),
        attacked=around(0.1),
        asr=around(0.8),
        verdict="reliable",
        checks=(),
        curve=(CurvePoint(budget=0, hit_1=0.5, asr_hits=0.0),),
    )
    helped = {"noise": (0.45, 0.25), "typo": (0.7, -0.17)}
    return made_entry("stranger", families=helped, attacks=(attack,))


def find(exported: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    """The only result of that evaluation and metric."""
    results = exported["evaluation_results"]
    (found,) = (r for r in results if r["evaluation_name"] == name and r["metric_config"]["metric_id"] == metric)
    return found


def test_the_schema_is_the_published_one() -> None:
    digest = hashlib.sha256((SCHEMA / "eval.schema.json").read_bytes()).hexdigest()
    assert digest in (SCHEMA / "SOURCE.txt").read_text()


def test_an_entry_is_valid_there(entry: Entry) -> None:
    schema = json.loads((SCHEMA / "eval.schema.json").read_text())
    exported = export_entry(entry, 1_700_000_000)
    jsonschema.Draft7Validator(schema).validate(json.loads(json.dumps(exported, allow_nan=False)))
    assert exported["schema_version"] == schema["version"]
    del exported["model_info"]["additional_details"]["deployment_type"]
    with pytest.raises(jsonschema.ValidationError):  # the schema does look inside
        jsonschema.Draft7Validator(schema).validate(exported)


def test_every_score_is_inside_its_stated_bounds(entry: Entry) -> None:
    """What the datastore's own check asks for beyond the schema."""
    for result in export_entry(entry, 0)["evaluation_results"]:
        config, details = result["metric_config"], result["score_details"]
        lowest = -math.inf if config["min_score"] == "-Infinity" else config["min_score"]
        assert lowest <= details["score"] <= config["max_score"], result


def test_each_number_has_one_place_and_its_interval(entry: Entry) -> None:
    exported = export_entry(entry, 0)
    ids = [result["evaluation_result_id"] for result in exported["evaluation_results"]]
    n_shifted = sum(score.lost is not None for score in entry.scores)
    n_metrics = sum(len(metrics) for score in entry.scores for metrics in score.metrics.values())
    assert len(set(ids)) == len(ids) == n_metrics + n_shifted + 2

    t2i = find(exported, "rove.made-v1.made-test-noise_made-3.t2i", "rove.hit@1")
    assert t2i["score_details"]["score"] == 0.45
    assert t2i["score_details"]["uncertainty"] == {
        "confidence_interval": {
            "lower": 0.425,
            "upper": 0.475,
            "confidence_level": 0.95,
            "method": "percentile bootstrap over images, each with its captions",
        },
        "num_samples": 200,
        "num_bootstrap_samples": N_RESAMPLES,
    }
    assert not t2i["metric_config"]["lower_is_better"]
    helped = find(exported, "rove.made-v1.made-test-typo_made-3.mean", "rove.lost")
    assert helped["score_details"]["score"] == -0.17
    assert helped["metric_config"]["lower_is_better"]
    success = find(exported, "rove.made-v1.made-test-pgd-2-query.t2i", "rove.asr_hits@1")
    assert success["score_details"]["uncertainty"]["num_samples"] == 100
    assert success["source_data"]["additional_details"]["threat_model"] == "query"


def test_what_is_not_known_is_not_said(entry: Entry) -> None:
    model = export_entry(entry, 0)["model_info"]
    assert "developer" not in model
    assert model["additional_details"]["model_availability"] == "unknown"
    assert all(model["additional_details"].values())


def test_the_same_bundle_is_the_same_record(entry: Entry) -> None:
    early, late = export_entry(entry, 1), export_entry(entry, 2)
    assert early.pop("retrieved_timestamp") == "1"
    assert late.pop("retrieved_timestamp") == "2"
    assert early == late


def test_a_limited_run_counts_the_images_it_had(entry: Entry) -> None:
    limited = entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"limit": 50})})
    counts = {r["score_details"]["uncertainty"]["num_samples"] for r in export_entry(limited, 0)["evaluation_results"]}
    assert counts == {50, 100}


def test_a_collection_of_unknown_size_is_refused(entry: Entry) -> None:
    cells = [Cell(collection="other/test", shift="clean", directions=("t2i",))]
    scores = (entry.scores[0].model_copy(update={"cell": cells[0]}),)
    stray = entry.model_copy(update={"manifest": made_manifest("stray", "made-v1", cells), "scores": scores})
    with pytest.raises(InputError, match="other/test"):
        export_entry(stray, 0)
