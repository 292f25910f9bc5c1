"""What `rove time` leaves behind: what a submission costs to serve, measured on one machine.

Milliseconds are this machine's; `relative` values, which divide them by a reference kernel timed in between, are what
is compared between machines, and only inside one hardware class.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.records import Amount, Command, Count, Environment, Estimate, Finite, Line, NotNegative, Sha256, Strict

Stage = Literal["encode", "search", "fetch", "rerank", "end_to_end"]
Kernel = Literal["gemm", "stream"]


def _in_order(estimate: Estimate) -> Estimate:
    """The estimate, if its interval has its ends the right way round; no evidence says so, as that of a cell does."""
    if estimate.low > estimate.high:
        raise ValueError("the low end of the interval is above the high one")
    return estimate


Ordered = Annotated[Estimate, AfterValidator(_in_order)]


def usual_folder(label: str, fingerprint: str) -> str:
    """Where below `runs/` the records of a submission go unless another place is asked for."""
    return f"{label}-{fingerprint[:8]}"


class Latency(Strict):
    """Percentiles of the milliseconds of one call; None where there were too few calls for one."""

    n_calls: Count
    p50_ms: NotNegative | None
    p90_ms: NotNegative | None
    p95_ms: NotNegative | None
    p99_ms: NotNegative | None

    @model_validator(mode="after")
    def _rises(self) -> Latency:
        known = [value for value in (self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms) if value is not None]
        if known != sorted(known):
            raise ValueError("a percentile is below a lower one")
        return self


class Reference(Strict):
    """A kernel of known work that was run between the calls."""

    kernel: Kernel
    work: Count = Field(description="floating-point operations, or bytes read, of one call")
    n_calls: Count
    median_ms: NotNegative
    spread: NotNegative = Field(description="interquartile range, as a share of the median")


class Served(Strict):
    """Queries asked in batches of one size, each of them new."""

    batch_size: Count
    stages: dict[Stage, Latency]
    relative: dict[Stage, NotNegative] = Field(
        description="median over a reference's: of search and fetch over the sum's, of others over the product's"
    )
    queries_per_s: NotNegative = Field(description="of one client that waits for each answer")


class Encoding(Strict):
    """A tower alone, in batches of one size."""

    tower: Literal["images", "texts"]
    batch_size: Count
    latency: Latency
    relative: NotNegative = Field(description="median over that of the matrix product")


class Gallery(Strict):
    """What is searched: the collection's images, and vectors drawn from a mixture that was fitted to them."""

    collection: Line
    source_sha256: Sha256
    n_real: Count
    n_synthetic: Amount
    dim: Count
    seed: Amount
    sha256: Sha256 = Field(description="of everything that decides the vectors")
    n_components: Amount = 0
    nearest_real: Finite | None = Field(
        default=None, description="median over queries of the best cosine with a real image that is not theirs"
    )
    nearest_synthetic: Finite | None = Field(default=None, description="the same among as many synthetic vectors")

    @property
    def n_items(self) -> int:
        """Real and synthetic."""
        return self.n_real + self.n_synthetic


class Index(Strict):
    """How it is searched."""

    factory: Line = Field(description="faiss's name of the index")
    search: dict[Line, Amount] = Field(max_length=10, description="nprobe, ef and k_factor, where they apply")
    device: Line
    n_bytes: Count
    sha256: Sha256 = Field(description="of the file")
    mapped: bool = Field(description="whether the file is memory-mapped rather than read")
    train_s: NotNegative
    add_s: NotNegative = Field(description="seconds to add all vectors; drawing and comparing them is not in it")
    build_peak_bytes: Amount = Field(description="the harness's largest resident memory while building")


class Recall(Strict):
    """What the index loses against exact search of the same vectors, with real captions as queries."""

    k: Count
    n_queries: Count
    overlap: Ordered = Field(description="share of the exact k best that were found")
    hits: Ordered = Field(description="share of queries with one of their own images among the k found")
    hits_exact: Ordered = Field(description="the same by exact search")


class Costs(Strict):
    """What a submission weighs."""

    parameters: Amount | None = None
    trainable: Amount | None = Field(default=None, description="as its author states")
    added: Amount | None = Field(default=None, description="as its author states")
    flops_per_image: Amount | None = Field(default=None, description="of one image alone; None if torch counted none")
    flops_per_text: Amount | None = None
    flops_per_pair: Amount | None = None
    embedding_bytes: Count = Field(description="of one item, float32")
    token_bytes: Amount = Field(default=0, description="what the second stage keeps of one image, as it is stored")
    payload_bytes: Amount = Field(default=0, description="size of the payload file")
    payload_repeats: bool = Field(
        default=False, description="synthetic items share the real items' tokens, addressed modulo their number"
    )
    worker_peak_bytes: Amount = Field(description="the submission's process")
    harness_peak_bytes: Amount = Field(description="the process that holds the index")


class TimingRecord(Strict):
    """One submission over one gallery through one index."""

    schema_version: Literal[1] = 1
    label: Line
    fingerprint: Sha256
    weights_sha256: Line
    hardware_class: Line
    threads: Count
    rerank_k: Amount = Field(description="items of each query that the second stage orders; 0 without one")
    k: Count = Field(description="items that are asked for")
    gallery: Gallery
    index: Index
    recall: Recall
    served: tuple[Served, ...] = Field(max_length=100)
    encodings: tuple[Encoding, ...] = Field(max_length=100)
    echo: tuple[Encoding, ...] = Field(
        max_length=100, description="a submission that computes nothing, with vectors as large"
    )
    cold_ms: dict[Stage, NotNegative] = Field(description="the first query, files dropped from the page cache")
    load_s: NotNegative
    open_s: NotNegative
    references: dict[Kernel, Reference]
    costs: Costs
    flags: tuple[Line, ...] = Field(default=(), max_length=100)
    command: Command = ""
    environment: Environment

    @property
    def slug(self) -> str:
        """A file name: gallery size, index with its parameters and device, and second stage."""
        search = [f"{name}{value}" for name, value in sorted(self.index.search.items())]
        parts = [
            str(self.gallery.n_items),
            self.index.factory,
            *search,
            f"rerank{self.rerank_k}" if self.rerank_k else "",
        ]
        text = "-".join(part for part in (*parts, self.index.device) if part)
        return "".join(char if char.isalnum() else "-" for char in text.lower())


class Point(Strict):
    """One index with one setting of its parameters."""

    factory: Line
    search: dict[Line, Amount] = Field(max_length=10)
    n_bytes: Count
    build_s: NotNegative
    overlap: Ordered
    latency: Latency
    relative: NotNegative = Field(description="median over that of a streaming sum")
    best: bool = Field(description="whether no other point is both faster and as exact")


class Sweep(Strict):
    """The trade-off of recall and latency over one gallery, search alone, one query at a time."""

    schema_version: Literal[1] = 1
    label: Line
    fingerprint: Sha256
    hardware_class: Line
    threads: Count
    device: Line
    k: Count
    gallery: Gallery
    points: tuple[Point, ...] = Field(max_length=1000)
    references: dict[Kernel, Reference]
    flags: tuple[Line, ...] = Field(default=(), max_length=100)
    command: Command = ""
    environment: Environment


class Ratio(Strict):
    """B's time over A's, of one stage: median over rounds in which both were asked, with its interval."""

    stage: Stage
    batch_size: Count
    ratio: Ordered


class Comparison(Strict):
    """Two submissions timed in turns over one gallery size."""

    schema_version: Literal[1] = 1
    a: TimingRecord
    b: TimingRecord
    ratios: tuple[Ratio, ...]
