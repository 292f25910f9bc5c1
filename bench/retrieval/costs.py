"""What a submission weighs, the memory that serving it takes, and the class of hardware it was timed on."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from bench.records import Environment, Manifest
from bench.timing_records import Costs
from bench.worker.host import Worker
from bench.worker.memory import PROCESSES, peak_bytes_of

COUNTED_ITEMS = 16
STATED_WITHIN = 0.01
_FLOAT32_BYTES = 4
_RESET_PEAK = "5"
_NOT_THE_MODEL = re.compile(r"\((?:r|tm|c)\)|[®™©]|@.*|\bcpu\b|\bprocessor\b|\b\S+-cores?\b", re.IGNORECASE)
_IDENTITY = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


class Stored(Protocol):
    """What is asked of the file of tokens that a second stage reads."""

    @property
    def item_bytes(self) -> int:
        """Of one image."""

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""


def measure_costs(
    worker: Worker,
    manifest: Manifest,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    texts: Sequence[str],
    dim: int,
    payload: Stored | None = None,
    payload_repeats: bool = False,
) -> Costs:
    """What the submission in `worker` weighs; to be asked when all else is done, so that the memory is that of serving.

    Args:
        manifest: of the same submission.
        images: RGB, of any sizes; operations are a mean over the first `COUNTED_ITEMS` of them, and of the texts.
        dim: of its embeddings.
        payload: the tokens as they are stored, if it has a second stage.
        payload_repeats: whether several items of the gallery share one item's tokens.

    Returns:
        Parameters are those that were loaded, or what the manifest states of a submission without torch; bytes of
        memory are 0 where the system does not tell.

    Raises:
        SubmissionError: the submission failed while its operations were counted.
    """
    # Counting keeps what torch would have fused apart, which takes memory that serving does not.
    worker_peak, harness_peak = worker.peak_bytes, harness_peak_bytes()
    flops = worker.count_flops(images[:COUNTED_ITEMS], texts[:COUNTED_ITEMS])
    stated, counted = manifest.parameters, worker.loaded.parameters
    return Costs(
        parameters=stated.total if counted is None else counted,
        trainable=stated.trainable,
        added=stated.added,
        flops_per_image=flops.per_image,
        flops_per_text=flops.per_text,
        flops_per_pair=flops.per_pair,
        embedding_bytes=dim * _FLOAT32_BYTES,
        token_bytes=payload.item_bytes if payload else 0,
        payload_bytes=payload.n_bytes if payload else 0,
        payload_repeats=payload_repeats,
        worker_peak_bytes=worker_peak or 0,
        harness_peak_bytes=harness_peak,
    )


def find_cost_flags(manifest: Manifest, counted: int | None) -> tuple[str, ...]:
    """What the manifest states of the submission's weight that is not what was found.

    Args:
        counted: parameters that were loaded; None if there was nothing to count.
    """
    stated = manifest.parameters.total
    if stated is None or counted is None or abs(stated - counted) <= STATED_WITHIN * counted:
        return ()
    return (f"{manifest.name} states {stated:,} parameters, but {counted:,} were loaded",)


def harness_peak_bytes() -> int:
    """The largest resident memory of this process since `reset_peak`, what is in RAM of a mapped index among it."""
    peak = peak_bytes_of("self")
    if peak is not None:
        return peak
    # BSD's descendants count bytes here, and everyone else KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Lets `harness_peak_bytes` start again from what is resident now, where the system can.

    Source: clear_refs in proc(5).
    """
    with suppress(OSError):
        (PROCESSES / "self" / "clear_refs").write_text(_RESET_PEAK)


def hardware_class(
    environment: Environment, device: str, threads: int, processors: Path = PROCESSES / "cpuinfo"
) -> str:
    """What two timings must have in common to be compared: "AMD EPYC (family 25 model 17), 2 threads, cpu".

    Args:
        environment: of this machine, now.
        device: what the submission computes on, by the name of its kind, such as "NVIDIA H200".
        threads: used by everything that runs on the processor.
        processors: the kernel's account of them, which says more where their name does not say the model.
    """
    name = " ".join(_NOT_THE_MODEL.sub(" ", environment.processor).split())
    is_vague = not re.search(r"\d", name) or name == environment.platform.rpartition(" ")[2]
    processor = f"{name or 'processor'} {_identify(processors)}".strip() if is_vague else name
    return f"{processor}, {threads} thread{'s' if threads != 1 else ''}, {device}"


def _identify(processors: Path) -> str:
    """The numbers by which the first processor's maker tells its models apart, in brackets; "" if there are none."""
    try:
        first = processors.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return ""
    facts = dict(re.findall(r"^([^\t\n]+?)\s*: (.+)$", first, re.MULTILINE))
    found = [f"{short} {facts[key]}" for key, short in _IDENTITY.items() if key in facts]
    return f"({' '.join(found)})" if found else ""
