"""The harness's side of the process boundary: starts a submission in a fresh interpreter, feeds it, ends it.

A worker has its own session, a cleared environment, a private scratch folder and no inherited descriptors but its
three, and reaches what its level of isolation lets it reach (`bench.worker.isolation`). Whatever it does (hang, crash,
exit, answer nonsense, take all memory) becomes a SubmissionError with a status; everything that it started is ended
with it, by the guard that stands between (`bench.worker.guard`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from bench.errors import (
    ProtocolError,
    SubmissionCrash,
    SubmissionError,
    SubmissionOutOfMemory,
    SubmissionTimeout,
    UsageError,
)
from bench.store import Scratch
from bench.submission import Submission, resolve_args
from bench.worker.guard import SWEEP_S
from bench.worker.isolation import SOURCE, Isolation, Reach, choose_isolation, confine, homes_of_hubs
from bench.worker.memory import descendants_of, peak_bytes_of_all
from bench.worker.wire import Channel, MemoryFile

LOG_BYTES = 64 << 10
MAX_INTEGER = 2**63 - 1
MAX_DIM = 65_536
MAX_SIDE_PX = 4096
MAX_TOKEN_VALUES = 1 << 24
MAX_FACTS, MAX_FACT = 1000, 500
KEPT_IMAGE_BLOCKS = 64
Shape = tuple[int | str, ...]
_log = logging.getLogger("rove")
_LARGEST = {"dim": MAX_DIM, "height": MAX_SIDE_PX, "width": MAX_SIDE_PX}
_KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TORCH_HOME"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
)


class Deadline:
    """When what is being done must be over; one is shared by all workers that serve a cell."""

    def __init__(self) -> None:
        self._end = math.inf

    def restart(self, seconds: float) -> None:
        """From now on there are so many seconds."""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """The seconds that are left, not below zero."""
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class WorkerSettings:
    """How a submission is run.

    Args:
        device: torch's name of the device.
        dtype: "float32" or "bfloat16".
        offline: nothing may be fetched.
        load_timeout_s: wall-clock limit for loading, in seconds.
        batch_timeout_s: wall-clock limit for one batch, in seconds.
        cell_timeout_s: wall-clock limit for one cell, in seconds; `cell` is what is left of it.
        isolation: what it is kept from; by default as much as this machine can.
        memory_bytes: what it may take with everything that it starts; None for all of the machine's.
    """

    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False
    load_timeout_s: float = 600.0
    batch_timeout_s: float = 600.0
    cell_timeout_s: float = 43_200.0
    isolation: Isolation = field(default_factory=lambda: choose_isolation("auto"))
    memory_bytes: int | None = None
    cell: Deadline = field(default_factory=Deadline, compare=False, repr=False)


@dataclass(frozen=True)
class Loaded:
    """What a worker says of the submission that it loaded.

    Args:
        differentiable: whether it implements `bench.types.Differentiable`, and so on.
        tower_ids: as `bench.types.Shared` gives them; none for most.
    """

    weights_sha256: str
    parameters: int | None
    versions: dict[str, str]
    device_name: str
    load_s: float
    differentiable: bool = False
    reranker: bool = False
    differentiable_reranker: bool = False
    tower_ids: Mapping[str, str] = field(default_factory=dict)


class Flops(NamedTuple):
    """Floating-point operations of one item, None where none were counted; a pair is an image's tokens and a text."""

    per_image: int | None
    per_text: int | None
    per_pair: int | None


class _Graph(NamedTuple):
    """What the worker can pull a gradient back through: shapes of both ends, and which call it was."""

    call: int
    pixels: tuple[int, ...]
    output: tuple[int, ...]


class Worker:
    """A submission in its own process; use it as a context manager.

    Attributes:
        loaded: what it is.
        autograd_calls: how often the submission has differentiated backwards while it answered: an optimiser that
            runs at inference time is found by it.
        detached_gradients: how many gradients are zeros because the output did not depend on the pixels.
    """

    def __init__(self, submission: Submission, settings: WorkerSettings, fetching: bool = False) -> None:
        """`fetching` lets it reach the network and fill the hubs' caches: it is loaded, and given nothing to encode."""
        if not fetching:
            _fetch_once(submission, settings)
        self._submission, self._settings = submission, settings
        self.autograd_calls = self.detached_gradients = self._n_graphs = 0
        self._graph: _Graph | None = None
        self._scratch = Scratch("worker")
        self._inbox, self._outbox = MemoryFile.create(), MemoryFile.create()
        (self._stream, theirs), (self._lifeline, guards) = socket.socketpair(), socket.socketpair()
        self._channel, self._reports = Channel(self._stream), Channel(self._lifeline)
        self._report: dict[str, Any] | None = None
        with theirs, guards:
            self._process = self._start(theirs, guards, fetching)
        self._log = _CappedLog(self._process.stdout)
        try:
            self.loaded = self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def graph(self) -> int | None:
        """Which call `pull_back` would go back through; None if there is none."""
        return self._graph and self._graph.call

    @property
    def peak_bytes(self) -> int | None:
        """The largest resident memory so far of the worker and what it started; None if it ended or nobody tells."""
        return None if self._process.poll() is not None else peak_bytes_of_all(descendants_of(self._process.pid))

    def encode_images(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n_images dim"]:
        """The submission's embeddings of RGB images of any sizes, as it returned them, (n_images, dim) float32.

        Raises:
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        answer = self._ask_about_images("encode_images", images)
        return self._array(answer, "encode_images", (len(images), "dim"), "images")

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """The submission's embeddings of texts, as it returned them, (n_texts, dim) float32.

        Raises:
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        answer = self._ask_about_arrays("encode_texts", None, texts)
        return self._array(answer, "encode_texts", (len(texts), "dim"), "texts")

    def pixels(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n_images 3 height width"]:
        """What the submission looks at of RGB images of any sizes, (n_images, 3, height, width) float32 in [0, 1].

        Raises:
            UsageError: the submission is not `Differentiable`.
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._need(self.loaded.differentiable, "Differentiable")
        answer = self._ask_about_images("pixels", images)
        pixels = self._array(answer, "pixels", (len(images), 3, "height", "width"), "images")
        if not pixels.min(initial=0) >= 0 or not pixels.max(initial=1) <= 1:
            found = f"values from {pixels.min():g} to {pixels.max():g}"
            raise ProtocolError(
                f"{self._submission.name}.pixels returned {found}; expected them in [0, 1], before normalisation. "
                "See submissions/README.md."
            )
        return pixels

    def embed_pixels(
        self, pixels: Float[np.ndarray, "n 3 height width"], grad: bool = False
    ) -> Float[np.ndarray, "n dim"]:
        """The submission's embeddings of such pixels, (n, dim) float32.

        Args:
            pixels: as `pixels` gives them.
            grad: keep the graph, the latest only, so that `pull_back` may follow.

        Raises:
            UsageError: the submission is not `Differentiable`, or runs in another type than float32.
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._need(self.loaded.differentiable, "Differentiable")
        return self._from_pixels("embed_pixels", pixels, None, (len(pixels), "dim"), grad)

    def pull_back(self, cotangent: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n 3 height width"]:
        """The vector-Jacobian product with the latest call that kept its graph, and the end of that graph.

        Args:
            cotangent: shaped as that call's output, float32.

        Returns:
            Shaped as that call's pixels, float32; it may hold NaN, which is for a check to find. Zeros where the
            output does not depend on the pixels, which counts as one of `detached_gradients`.

        Raises:
            UsageError: there is no graph, or it is another one's shape.
            SubmissionError: the submission failed or ran out of time.
        """
        graph, self._graph = self._graph, None
        if graph is None or graph.output != cotangent.shape:
            kept = f"the graph of an output of shape {graph.output}" if graph else "no graph; each serves once"
            raise UsageError(f"cannot pull a gradient of shape {cotangent.shape} back: the worker keeps {kept}.")
        answer = self._ask_about_arrays("pull_back", cotangent)
        self.detached_gradients += not answer.get("attached")
        return self._array(answer, "pull_back", graph.pixels, "images")

    def image_tokens(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n_images ..."]:
        """What the submission keeps of RGB images for `score_pairs`, (n_images, ...) float16 or float32.

        Raises:
            UsageError: the submission is no `Reranker`.
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._need(self.loaded.reranker, "a Reranker")
        answer = self._ask_about_images("image_tokens", images)
        return self._array(answer, "image_tokens", (len(images), "..."), "images", ("<f2", "<f4"))

    def score_pairs(
        self, tokens: Float[np.ndarray, "n_pairs ..."], texts: Sequence[str]
    ) -> Float[np.ndarray, " n_pairs"]:
        """How well each image's tokens go with the text beside it, (n_pairs,) float32, finite.

        Raises:
            UsageError: the submission is no `Reranker`.
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._need(self.loaded.reranker, "a Reranker")
        answer = self._ask_about_arrays("score_pairs", tokens, texts)
        return self._finite(self._array(answer, "score_pairs", (len(texts),), "pairs"), "score_pairs")

    def score_pixels(
        self, pixels: Float[np.ndarray, "n_pairs 3 height width"], texts: Sequence[str], grad: bool = False
    ) -> Float[np.ndarray, " n_pairs"]:
        """`score_pairs` from pixels, (n_pairs,) float32, finite; with `grad` its graph is kept for `pull_back`.

        Raises:
            UsageError: the submission is no `DifferentiableReranker`, or runs in another type than float32.
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._need(self.loaded.differentiable_reranker, "a DifferentiableReranker")
        scores = self._from_pixels("score_pixels", pixels, texts, (len(texts),), grad)
        return self._finite(scores, "score_pixels")

    def count_flops(self, images: Sequence[UInt8[np.ndarray, "h w 3"]], texts: Sequence[str]) -> Flops:
        """Means over a few images, texts and, of a reranker, pairs of an image with the text beside it, each alone.

        Only torch's operations are counted, and of those what `bench.worker.flops` says.

        Raises:
            SubmissionError: it failed, ran out of time, or answered with something else than counts.
        """
        tokens = [self.image_tokens([image]) for image in images] if self.loaded.reranker else []
        ask_images, ask_arrays = self._ask_about_images, self._ask_about_arrays
        pairs = zip(tokens, texts, strict=False)
        return Flops(
            self._mean_flops([ask_images("count_flops", [image], of="encode_images") for image in images]),
            self._mean_flops([ask_arrays("count_flops", None, [text], of="encode_texts") for text in texts]),
            self._mean_flops([ask_arrays("count_flops", own, [text], of="score_pairs") for own, text in pairs]),
        )

    def close(self) -> None:
        """Ends the worker and everything that it started; safe to call again."""
        if self._report is None:
            with contextlib.suppress(OSError):
                self._channel.send({"op": "bye"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        self._end()
        if self._stream.fileno() >= 0:
            self._stream.close()
            self._lifeline.close()
            self._log.close()
            self._inbox.close()
            self._outbox.close()
            self._scratch.close()

    def _start(self, theirs: socket.socket, guards: socket.socket, fetching: bool) -> subprocess.Popen[bytes]:
        settings = self._settings
        descriptors = {"control": theirs.fileno(), "inbox": self._inbox.descriptor, "outbox": self._outbox.descriptor}
        child = [sys.executable, "-P", "-m", "bench.worker.child"]
        for name, descriptor in descriptors.items():
            child += [f"--{name}", str(descriptor)]
        reach = _reach(self._submission, self._scratch.path, settings.device, fetching)
        guard = [sys.executable, "-P", "-m", "bench.worker.guard", "--lifeline", str(guards.fileno())]
        guard += ["--scratch", str(self._scratch.path), "--held", str(self._scratch.descriptor)]
        if settings.isolation.level != "L0":
            guard += ["--memory", str(settings.memory_bytes or _machine_bytes())]
            guard += ["--address-space"] if settings.device == "cpu" else []
        return subprocess.Popen(
            [*guard, "--", *confine(settings.isolation.level, reach, child)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._scratch.path,
            env=_environment(self._scratch.path, settings.offline, settings.isolation.confined, fetching),
            pass_fds=[guards.fileno(), self._scratch.descriptor, *descriptors.values()],
            start_new_session=True,
        )

    def _load(self) -> Loaded:
        started = time.perf_counter()
        answer = self._ask(
            {
                "op": "load",
                "module": str(self._submission.module),
                "import_name": self._submission.import_name,
                "function": self._submission.function,
                "folder": str(self._submission.folder),
                "args": resolve_args(self._submission),
                "requires": self._submission.manifest.requires,
                "device": self._settings.device,
                "dtype": self._settings.dtype,
                "offline": self._settings.offline,
            },
            self._settings.load_timeout_s,
        )
        try:
            return Loaded(
                weights_sha256=_matching(r"([0-9a-f]{64})?", answer["weights_sha256"]),
                parameters=None if answer["parameters"] is None else self._count(answer["parameters"], "parameters"),
                versions=_facts(answer["versions"]),
                device_name=_matching(rf"[ -~]{{0,{MAX_FACT}}}", answer["device_name"]),
                load_s=time.perf_counter() - started,
                differentiable=answer["differentiable"] is True,
                reranker=answer["reranker"] is True,
                differentiable_reranker=answer["differentiable_reranker"] is True,
                tower_ids=_facts(answer["tower_ids"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{self._submission.name} answered the load request with nonsense: {error}.") from None

    def _from_pixels(
        self, operation: str, pixels: np.ndarray, texts: Sequence[str] | None, expected: Shape, grad: bool
    ) -> np.ndarray:
        if self._settings.dtype != "float32":
            raise UsageError(f"pixels are embedded in float32; {self._submission.name} runs in {self._settings.dtype}.")
        self._graph = None if grad else self._graph
        answer = self._ask_about_arrays(operation, pixels, texts, grad=grad)
        output = self._array(answer, operation, expected, "images")
        if grad:
            self._n_graphs += 1
            self._graph = _Graph(self._n_graphs, pixels.shape, output.shape)
        return output

    def _ask_about_images(self, operation: str, images: Sequence[np.ndarray], of: str = "") -> dict[str, Any]:
        self._inbox.write(images)
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        return self._ask({"op": operation, "of": of, "sizes": sizes}, self._settings.batch_timeout_s)

    def _ask_about_arrays(
        self,
        operation: str,
        array: np.ndarray | None,
        texts: Sequence[str] | None = None,
        grad: bool = False,
        of: str = "",
    ) -> dict[str, Any]:
        """Puts the array, and behind it the texts, into the inbox and asks."""
        first = np.empty(0, np.float32) if array is None else array
        payload = b"" if texts is None else json.dumps(list(texts)).encode()
        self._inbox.write([first, np.frombuffer(payload, np.uint8)])
        request = {
            "op": operation,
            "of": of,
            "shape": list(first.shape),
            "dtype": first.dtype.str,
            "start": first.nbytes,
            "n_bytes": len(payload),
            "grad": grad,
        }
        return self._ask(request, self._settings.batch_timeout_s)

    def _need(self, able: bool, protocol: str) -> None:
        if not able:
            raise UsageError(f"{self._submission.name} is not {protocol}. See submissions/README.md.")

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        name, left = self._submission.name, min(timeout_s, self._settings.cell.left())
        try:
            self._channel.send({**request, "timeout_s": left})
            answer = self._channel.receive(left)
        except TimeoutError:
            self._end()
            of, flag = ("the cell", "--cell-timeout") if left < timeout_s else ("a batch", "--timeout")
            raise SubmissionTimeout(
                f"{name} did not answer '{request['op']}' within {left:.3g} s, what {of} may take, and was stopped. "
                f"A smaller --batch-size or a longer {flag} may help." + self._log.tail()
            ) from None
        except (ValueError, RecursionError) as error:
            self._end()
            raise ProtocolError(f"{name} wrote something else to the control channel: {error}.") from None
        except OSError:
            answer = None
        if answer is None:
            raise self._crash(request["op"])
        if answer.get("ok") is not True:
            raise self._failure(answer)
        self.autograd_calls += self._count(answer.get("autograd_calls", 0), "backward passes")
        return answer

    def _mean_flops(self, answers: Sequence[dict[str, Any]]) -> int | None:
        counts = [answer.get("flops") for answer in answers]
        told = [self._count(count, "floating-point operations") for count in counts if count is not None]
        return round(sum(told) / len(told)) if told and len(told) == len(counts) else None

    def _count(self, count: object, things: str) -> int:
        if type(count) is not int or not 0 <= count <= MAX_INTEGER:
            raise ProtocolError(f"{self._submission.name} counted {count!r} {things}; expected a number from 0 on.")
        return count

    def _crash(self, operation: str) -> SubmissionError:
        name, report = self._submission.name, self._end()
        taken, status = report.get("resident_bytes"), report.get("status")
        if taken is not None:
            return SubmissionOutOfMemory(
                f"{name} took {taken / 1e9:.3g} GB of memory during '{operation}' and was stopped. A smaller "
                "--batch-size or a larger --memory may help." + self._log.tail()
            )
        code = None if status is None else _exit_code(status, self._settings.isolation)
        if code == -signal.SIGXCPU:
            return SubmissionTimeout(f"{name} computed for longer than '{operation}' may take." + self._log.tail())
        how = "nobody knows how: its guard was killed" if code is None else _ending(code)
        return SubmissionCrash(f"{name} ended during '{operation}' ({how}); expected an answer." + self._log.tail())

    def _failure(self, answer: dict[str, Any]) -> SubmissionError:
        kinds = {"protocol": ProtocolError, "oom": SubmissionOutOfMemory}
        kind = kinds.get(str(answer.get("status")), SubmissionError)
        trace = str(answer.get("traceback", ""))[-4000:]
        hint = _CONFINED if self._settings.isolation.confined and _lacks_reach(trace) else ""
        text = f"{self._submission.name}: {str(answer.get('error'))[:2000]}{hint}"
        return kind(text + (f"\n{trace}" if trace else ""))

    def _array(
        self, answer: dict[str, Any], function: str, expected: Shape, items: str, dtypes: Sequence[str] = ("<f4",)
    ) -> np.ndarray:
        """The array that stands in the outbox, if it is of an expected shape and type."""
        shape, dtype = answer.get("shape"), answer.get("dtype")
        name = f"{self._submission.name}.{function}"
        if not isinstance(shape, list) or not _fits(shape, expected) or dtype not in dtypes:
            raise ProtocolError(
                f"{name} returned {_described(shape)} {_dtype_name(dtype)} for {expected[0]} {items}; "
                f"expected {_described(expected)} {' or '.join(map(_dtype_name, dtypes))}. See submissions/README.md."
            )
        try:
            raw = self._outbox.read(math.prod(shape) * np.dtype(dtype).itemsize)
        except ValueError as error:
            raise ProtocolError(f"{name} announced {_described(shape)} but {error}.") from None
        return raw.view(dtype).reshape(shape)

    def _finite(self, scores: np.ndarray, function: str) -> np.ndarray:
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise ProtocolError(
                f"{self._submission.name}.{function} returned a score of {scores[bad[0]]} (pair {bad[0]} of "
                f"{len(scores)}, {bad.size} in all); expected finite scores. See submissions/README.md."
            )
        return scores

    def _end(self) -> dict[str, Any]:
        """What the guard reports when everything is over; empty if it was killed itself."""
        if self._report is None:
            self._report, child = {}, None
            with contextlib.suppress(OSError):
                self._lifeline.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError, ValueError):
                while message := self._reports.receive(SWEEP_S + 5):
                    child = message.get("pid", child)
                    self._report = message if "left" in message else {}
            if not self._report:
                self._kill(child)
            elif self._report["left"]:
                _log.warning(
                    "%s left %s processes that could not be ended.", self._submission.name, self._report["left"]
                )
            self._process.wait()
        return self._report

    def _kill(self, child: int | None) -> None:
        """Ends the groups of the guard and of the submission, where the guard is gone."""
        for group in (self._process.pid, child):
            if group is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)


class _CappedLog:
    """Drains a worker's output and keeps the last of it."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The last lines, ready to be put behind an error message."""
        self._thread.join(timeout=1)
        with self._lock:
            text = b"".join(self._chunks).decode(errors="replace").strip()[-2000:]
        return f"\nIts last output:\n{text}" if text else ""

    def close(self) -> None:
        self._thread.join(timeout=1)
        if self._pipe is not None and not self._thread.is_alive():
            self._pipe.close()

    def _drain(self) -> None:
        if self._pipe is None:
            return
        while chunk := os.read(self._pipe.fileno(), 1 << 14):
            with self._lock:
                self._chunks.append(chunk)
                self._kept += len(chunk)
                while self._kept > LOG_BYTES:
                    self._kept -= len(self._chunks.popleft())


_CONFINED = (
    " (It ran confined: no network, and no files but its folder, those that its arguments name, the installed packages "
    "and a scratch folder. Weights that come from a hub need `fetches = true` in its submission.toml; --isolation "
    "process runs it without.)"
)
_fetched: set[str] = set()


def _fetch_once(submission: Submission, settings: WorkerSettings) -> None:
    """Loads a submission that fetches its weights once with a network, before it is confined without one."""
    needed = submission.manifest.fetches and settings.isolation.confined and not settings.offline
    if needed and submission.fingerprint not in _fetched:
        Worker(submission, settings, fetching=True).close()
        _fetched.add(submission.fingerprint)


def _reach(submission: Submission, scratch: Path, device: str, fetching: bool) -> Reach:
    """What a submission may touch: its own files, what its arguments name, the hubs' caches, its scratch folder."""
    package = submission.module.parents[max(0, submission.import_name.count(".") - 1)]
    named = [Path(value) for value in resolve_args(submission).values() if value.startswith("/")]
    homes = tuple(homes_of_hubs().values())
    return Reach(
        read=(submission.folder, package, *(path for path in named if path.exists()), *homes),
        write=(scratch, *(homes if fetching else ())),
        network=fetching,
        device=device,
    )


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _environment(scratch: Path, offline: bool, confined: bool, fetching: bool) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    fixed = {"PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
    # Pillow would give the memory of every batch back: page faults then cost more than copying the pixels does.
    pillow = {"PILLOW_BLOCKS_MAX": str(KEPT_IMAGE_BLOCKS)}
    hubs = {name: str(home) for name, home in homes_of_hubs().items()}
    homes = {"HOME": str(scratch), "XDG_CACHE_HOME": str(scratch / ".cache"), **hubs} if confined else {}
    cut_off = offline or (confined and not fetching)
    hub = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if cut_off else {}
    return {**kept, **fixed, **pillow, **homes, **hub, "TOKENIZERS_PARALLELISM": "false"}


def _exit_code(status: int, isolation: Isolation) -> int:
    """What os.waitpid says as an exit code, or a signal below zero; bubblewrap passes signals on as shells do."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if isolation.level == "L3" and code > 128 else code


def _ending(code: int) -> str:
    known = {number.value: number.name for number in signal.Signals}
    return f"exit status {code}" if code >= 0 else f"signal {known.get(-code, -code)}"


def _lacks_reach(trace: str) -> bool:
    return any(word in trace for word in ("PermissionError", "FileNotFoundError", "ConnectionError", "OfflineMode"))


def _facts(told: object) -> dict[str, str]:
    """What a submission's process says of itself by name, if it is short.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(told, dict) or len(told) > MAX_FACTS:
        raise ValueError(f"expected at most {MAX_FACTS} facts by name")
    line = rf"[ -~]{{0,{MAX_FACT}}}"
    return {_matching(line, name): _matching(line, value) for name, value in told.items()}


def _matching(pattern: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{str(value)[:80]!r} does not match {pattern}")
    return value


def _fits(shape: Sequence[object], expected: Shape) -> bool:
    """Whether every side is the number expected, or of a size allowed for its name; "..." is any number of sides."""
    if expected[-1] == "...":
        rest = [side for side in shape[len(expected) - 1 :] if type(side) is int and side > 0]
        whole = len(rest) + len(expected) - 1 == len(shape) and math.prod(rest) <= MAX_TOKEN_VALUES
        return whole and _fits(shape[: len(expected) - 1], expected[:-1])
    return len(shape) == len(expected) and all(map(_side_fits, shape, expected))


def _side_fits(side: object, expected: int | str) -> bool:
    if type(side) is not int:
        return False
    return 0 < side <= _LARGEST[expected] if isinstance(expected, str) else side == expected


def _described(shape: object) -> str:
    return f"({', '.join(map(str, shape))})" if isinstance(shape, list | tuple) else "no shape"


def _dtype_name(dtype: object) -> str:
    try:
        return np.dtype(str(dtype)).name
    except TypeError:
        return "of no dtype"
