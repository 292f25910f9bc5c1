"""What a run leaves behind: one record per cell, the run's manifest, and how both are read and written.

Everything in a record but `timing` is a function of the inputs that `key` hashes. Readers accept data only: sizes are
limited, unknown fields and non-finite numbers are errors, and every error names file and field. The TOML files that
people write are read here too, in the same way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    UrlConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from bench.errors import InputError, describe_validation
from bench.types import Direction, Stage, ThreatModel

MAX_JSON_BYTES = 4 << 20
MAX_TOML_BYTES = 256 << 10
MAX_INTEGER = 2**63 - 1
MAX_CELLS = 2_000
CLEAN = ("clean", "clean_canvas")
DONE = ("ok", "skipped")
_REORDERING = "\\u202a-\\u202e\\u2066-\\u2069"  # of the letters of a line, by Unicode's bidirectional algorithm
_CONTROL = f"\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f{_REORDERING}"
_UNSAFE = re.compile(f"[{_CONTROL}]")
# tomllib needs time and memory by the square of a key's parts; longer parts than these make fewer of them.
_PART = r"""(?:[\w-]{1,200}|"(?:\\.|[^"\\\n]){0,200}"|'[^'\n]{0,200}')"""
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]*\.[ \t]*){{100}}")


def without_control(text: str) -> str:
    """What a program said, safe to show: it may hold a terminal's escape codes, and is not refused for them."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, StringConstraints(max_length=500, pattern=rf"^[^\n\t\u2028\u2029{_CONTROL}]*$")]
Status = Literal["ok", "skipped", "error", "timeout", "crash", "protocol", "oom"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Text = Annotated[str, StringConstraints(max_length=2000, pattern=f"^[^{_CONTROL}]*$")]
Command = Annotated[str, StringConstraints(max_length=4000), AfterValidator(without_control)]
HttpsUrl = Annotated[AnyUrl, UrlConstraints(allowed_schemes=["https"], max_length=500)]
Objective = Literal["retrieval", "reranking", "both stages"]
ProbeName = Literal["order", "batch size", "duplicates", "memorised pairs", "spread", "ties", "speed", "second stage"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Amount = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Strict):
    """Parameter counts that the author states; what the harness can count itself, it counts."""

    total: Amount | None = None
    trainable: Amount | None = None
    added: Amount | None = None


class TrainingData(Strict):
    """A collection that a fit has learnt from."""

    name: Text
    sha256: Sha256 = Field(description="ids and hashes of all images, the captions and the positives")
    n_images: Count
    n_captions: Count


class TriedSetting(Strict):
    """One of the settings that `rove fit --search` has tried."""

    args: dict[Line, Line] = Field(max_length=100, description="those that the search varies")
    validation_r1: Percent


class Fit(Strict):
    """How `rove fit` made a submission; what a recipe does not report stays None."""

    recipe: Name
    version: Count = Field(description="of the recipe: another one may give other weights")
    seed: Amount
    args: dict[Line, Line] = Field(default={}, max_length=100, description="what --recipe-arg can set, all of it")
    data: list[TrainingData] = Field(min_length=1, max_length=100)
    validation: Text = Field(description="the collection that choices were made on, or `held out`")
    epochs: NotNegative | None = Field(default=None, description="passes over the training images that were made")
    steps: Amount | None = None
    seconds: NotNegative | None = Field(default=None, description="of training, interruptions apart")
    relative_seconds: NotNegative | None = Field(default=None, description="to as many steps of full fine-tuning")
    mergeable: bool | None = Field(default=None, description="folded into the base's own layers when it is used")
    validation_r1: Percent | None = Field(default=None, description="mean of both directions' R@1, after fitting")
    base_validation_r1: Percent | None = Field(default=None, description="the same of the base")
    tried: list[TriedSetting] = Field(default=[], max_length=100, description="by --search, which kept the best")
    saw_evaluation_data: bool = Field(description="whether images of a test split are known to be among the data")


class Manifest(Strict):
    """The contents of `submission.toml`: facts about a submission; choices are in its `model.py`."""

    name: Name
    title: Text = ""
    summary: Text = ""
    method: Text = Field(default="", description="what was done to the base: zero-shot, full fine-tuning, LoRA, ...")
    base: Text = Field(default="", description="name of the submission that it was fitted from")
    authors: list[Text] = Field(default=[], max_length=100)
    license: Text = ""
    url: HttpsUrl | None = None
    trained_on: list[Text] = Field(
        default=[], max_length=100, description="collections whose items the weights have seen"
    )
    requires: list[Text] = Field(
        default=[], max_length=100, description="distributions whose versions matter to the result"
    )
    args: dict[Line, Line] = Field(default={}, max_length=100, description="defaults of what --model-arg can set")
    index: Annotated[Line, StringConstraints(min_length=1)] | None = Field(
        default=None,
        description="faiss's name of the index that `rove time` uses, unless --index says another",
    )
    rerank_k: Count | None = Field(
        default=None, description="items of each query that a second stage orders, unless --rerank-k says otherwise"
    )
    fetches: bool = Field(default=False, description="whether its weights come from a hub, over the network")
    parameters: Parameters = Parameters()
    fit: Fit | None = Field(default=None, description="how `rove fit` made it; None where something else did")


class Cell(Strict):
    """One (collection, shift or attack, threat model, direction set) of a suite."""

    collection: Line
    shift: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}(:[1-9][0-9]?)?$")]
    baseline: Line = Field(default="", description="the collection whose clean canvas it is measured against")
    threat_model: ThreatModel | Literal[""] = Field(default="", description="of an attack: which items it may change")
    stage: Stage | Literal[""] = Field(
        default="", description="of a two-stage submission, what the attacker aims at; empty for all that it has"
    )
    victim: Line = Field(default="", description="whose attacked items are scored; empty for the submission's own")
    n_images: Annotated[int, Field(ge=2, le=MAX_INTEGER)] | None = Field(
        default=None, description="of an attack: only the first images of the collection, with their captions"
    )
    seed: Amount = 0
    directions: tuple[Direction, ...] = Field(min_length=1, max_length=3)

    @property
    def id(self) -> str:
        """`flickr8k/test pgd:2 query`: collection and shift, behind them what is not the usual."""
        source = f"from {self.victim}" if self.victim else ""
        seed = f"seed {self.seed}" if self.seed else ""
        parts = (self.collection, self.shift, self.threat_model, self.stage, source, seed)
        return " ".join(part for part in parts if part)

    @property
    def slug(self) -> str:
        """Its id as a file name."""
        return re.sub(r"[^a-z0-9_]+", "-", self.id.lower())

    @property
    def change(self) -> str:
        """What is changed, without a severity: a shift's name, or the collection that stands in for another."""
        return self.collection if self.baseline else self.shift.partition(":")[0]

    @property
    def is_attack(self) -> bool:
        """Whether its items are made against a victim."""
        return bool(self.threat_model)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is changed, so that there is no degradation to speak of."""
        return self.shift in CLEAN and not self.baseline


class Estimate(Strict):
    """A metric's value with its 95 % interval."""

    value: Finite
    low: Finite
    high: Finite


Metrics = Annotated[dict[Line, Estimate], Field(max_length=100)]


class Data(Strict):
    """What was evaluated on: the source items, and what the submission was really fed."""

    revision: Line = ""
    n_images: Count
    n_captions: Count
    n_distractors: Amount = Field(default=0, description="in the gallery, nobody's positives")
    n_unchanged: Amount = Field(
        default=0, description="captions that a text shift left as they are, or that gave no distractor"
    )
    source_sha256: Sha256 = Field(description="ids and hashes of all images, the captions and the positives")
    images_sha256: Sha256 = Field(description="the pixels fed")
    captions_sha256: Sha256 = Field(description="the captions fed")
    distractors_sha256: Sha256 | None = Field(default=None, description="the distractors fed, pixels or captions")
    token_bytes: Count | None = Field(
        default=None, description="what a second stage keeps of one image; None where one stage was scored"
    )

    @property
    def items(self) -> str:
        """Equal for all that were fed the same, whatever their copy is called and however many stages ranked it."""
        return digest_of(self.model_dump(exclude={"revision", "token_bytes"}))


class Timing(Strict):
    """How long things took; nothing else in a record depends on the machine's speed."""

    encode_images_ms: NotNegative | None = Field(default=None, description="median per image, batched")
    encode_texts_ms: NotNegative | None = Field(default=None, description="median per caption, batched")
    images_cached: bool = False
    texts_cached: bool = False
    wall_s: NotNegative = 0.0


class Check(Strict):
    """One sanity check of an attack: did it do what an attack must do, if its failure is to mean robustness?"""

    name: Line
    passed: bool
    detail: Text = ""


class Probe(Strict):
    """What one probe of a submission found; docs/probes.md has their rules."""

    name: ProbeName
    status: Literal["passed", "failed", "flagged", "not run"]
    figure: Finite | None = Field(default=None, description="what its rule looks at; None where it was not run")
    detail: Text = ""


class CurvePoint(Strict):
    """How an attack does at another budget, on the examined images."""

    budget: Amount
    hit_1: Finite = Field(description="attacked R@1, a fraction")
    asr_hits: Finite | None = Field(description="share of the clean hits that are lost; None without a clean hit")


class AttackReport(Strict):
    """What an attacked cell tells beside its metrics, which are those of the attacked items, rounded, in a budget."""

    access: Literal["white", "black"]
    version: Count
    victim: Line = Field(description="label of the submission that the items were made against")
    objective: Objective = Field(
        default="retrieval", description="the stages attacked; the metrics are always those of the final ranking"
    )
    budget: Count
    unit: Literal["levels of 255", "characters", "words"]
    n_attacked: Count
    n_unchanged: Amount = 0
    largest_change: Amount = Field(description="among the images scored, in levels of 255")
    most_edits: Amount = Field(description="among the captions scored, in characters or words")
    similarity: Finite | None = Field(default=None, description="mean cosine of attacked captions with the originals")
    candidates: Line = Field(default="", description="where replacements for words came from")
    examples_sha256: Sha256 = Field(description="all attacked items, in the collection's order")
    loss_before: Finite | None = Field(default=None, description="mean of what the attack raises, on clean items")
    loss_after: Finite | None = None
    clean: dict[Direction | Literal["both"], Metrics] = Field(
        description="metrics of the same items without the attack: the victim's crops, or the captions as they were"
    )
    unrounded: dict[Direction | Literal["both"], Metrics] = Field(
        default={}, description="metrics of attacked images before they were rounded to whole levels"
    )
    asr: dict[Direction, Metrics] = Field(description="asr_hits@k and asr_drop@k, as fractions")
    curve: tuple[CurvePoint, ...] = Field(default=(), max_length=100)
    checks: tuple[Check, ...] = Field(default=(), max_length=100)
    verdict: Text = Field(description="`reliable`, `unreliable: reason`, or `transferred`")


class Record(Strict):
    """The result of one cell."""

    schema_version: Literal[1] = 1
    cell: Cell
    family: Line
    key: Sha256 = Field(description="sha256 over every input of this cell")
    status: Status
    reason: Annotated[str, StringConstraints(max_length=8000), AfterValidator(without_control)] = ""
    flags: tuple[Line, ...] = Field(default=(), max_length=100)
    isolation: Line = Field(default="", description="the level that the submission ran at; see bench.worker.isolation")
    data: Data | None = None
    dim: Count | None = None
    embeddings_sha256: dict[Literal["images", "texts"], Sha256] = {}
    metrics: dict[Direction | Literal["both"], Metrics] = {}
    attack: AttackReport | None = None
    evidence_sha256: Sha256 | None = None
    timing: Timing = Timing()

    @property
    def n_images(self) -> int:
        """How many images the cell was scored on; 0 of one that was not."""
        return self.data.n_images if self.data else 0


class Environment(Strict):
    """The machine and the software that produced a run."""

    rove: Line
    python: Line
    platform: Line
    processor: Line
    cores: Count
    memory_bytes: Amount
    device: Line
    versions: dict[Line, Line] = Field(max_length=1000)


class RunManifest(Strict):
    """What was run: one submission over one suite, on one machine."""

    schema_version: Literal[1] = 1
    submission: Manifest
    label: Line
    args: dict[Line, Line] = Field(max_length=100)
    fingerprint: Sha256 = Field(description="the submission's files and arguments")
    weights_sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] | None = Field(
        default=None, description="of the torch modules that were loaded; empty if there were none, None before loading"
    )
    parameters: Amount | None = None
    suite: Line
    suite_id: Sha256
    collections: dict[Line, Count] = Field(max_length=1000, description="how many images of each are scored")
    cells: tuple[Cell, ...] = Field(max_length=MAX_CELLS)
    device: Line
    dtype: Line
    batch_size: Count
    limit: Count | None = None
    rerank_k: Count | None = Field(
        default=None, description="how many items of each query a second stage ordered; None where there is one stage"
    )
    isolation: Line
    data_dirs: dict[Line, Line] = Field(default={}, max_length=1000)
    command: Command = ""
    environment: Environment
    probes: tuple[Probe, ...] = Field(
        default=(), max_length=len(PROBES), description="in the order of PROBES; none before a run is finished"
    )

    @field_validator("data_dirs")
    @classmethod
    def _no_places(cls, value: dict[str, str]) -> dict[str, str]:
        """Keeps which format a local copy had, not where on somebody's machine it lay."""
        return {name: source.partition(":")[0] for name, source in value.items()}

    @model_validator(mode="after")
    def _suite_is_whole(self) -> RunManifest:
        if suite_digest(self.suite, self.collections, self.cells) != self.suite_id:
            raise ValueError("suite_id is not that of the suite's name, collections and cells")
        return self

    @property
    def obstacle(self) -> str:
        """What of the manifest keeps its row from being ranked; empty if nothing does."""
        if self.limit is not None:
            return f"scored on the first {self.limit} images of each collection only (--limit)"
        found = next((probe for probe in self.probes if probe.status in ("failed", "not run")), None)
        return "" if found is None else f"invalid, probe '{found.name}' {found.status}: {found.detail}"


def suite_digest(label: str, collections: Mapping[str, int], cells: Iterable[Cell]) -> str:
    """A suite's id: hex sha256 over everything that decides a score, so that a bundle cannot leave cells out."""
    return digest_of(label, dict(collections), [cell.model_dump() for cell in cells])


Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, model: type[Model]) -> Model:
    """The validated contents of a JSON file.

    Raises:
        InputError: it is missing, too large, not JSON, has a key twice, or breaks the schema; names file and field.
    """
    raw = _read(path, MAX_JSON_BYTES, model)
    try:
        json.loads(raw, object_pairs_hook=unique_keys, parse_constant=_no_constants)
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {without_control(describe_validation(error))[:1000]}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {str(error)[:1000]}; expected a {model.__name__}.") from None


def read_toml(path: Path, model: type[Model]) -> Model:
    """The validated contents of a TOML file.

    Raises:
        InputError: it is missing, too large, not TOML, or breaks the schema; names file and field.
    """
    raw = _read(path, MAX_TOML_BYTES, model)
    try:
        text = raw.decode("utf-8-sig")
        if _DEEP_KEY.search(text):
            raise ValueError("a key has more than 100 parts")
        return model.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise InputError(f"{path}: {without_control(describe_validation(error))[:1000]}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {str(error)[:1000]}; expected a {model.__name__}.") from None


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The bytes of a plain file; a pipe or a device could be waited for without end, so none is read.

    Raises:
        OSError: it cannot be opened, is no plain file, or is larger than `max_bytes`; `strerror` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if facts.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {facts.st_size:,} bytes; expected at most {max_bytes:,}", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(facts.st_size)
    finally:
        os.close(descriptor)


def to_json(model: BaseModel) -> bytes:
    """Canonical bytes of a record or manifest: sorted keys, one trailing newline."""
    return (json.dumps(model.model_dump(mode="json"), sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def digest_of(*parts: object) -> str:
    """Hex sha256 over the canonical JSON of `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def estimate(value: float, low: float, high: float) -> Estimate:
    """An Estimate of plain floats, rounded to 10 significant digits so that equal results print equal."""
    return Estimate(value=_rounded(value), low=_rounded(low), high=_rounded(high))


def _read(path: Path, max_bytes: int, model: type[BaseModel]) -> bytes:
    try:
        return read_plain(path, max_bytes)
    except OSError as error:
        raise InputError(f"cannot read {path} as a {model.__name__}: {error.strerror}.") from None


def _rounded(number: float) -> float:
    number = float(number)
    return number if number == 0 or not math.isfinite(number) else float(f"{number:.10g}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's pairs as a mapping, for `json.loads`.

    Raises:
        ValueError: a key stands twice.
    """
    contents = dict(pairs)
    if len(contents) != len(pairs):
        raise ValueError("a key stands twice")
    return contents


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
