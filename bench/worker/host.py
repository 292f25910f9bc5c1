"""The harness's side of the process boundary: starts a submission in a fresh interpreter, feeds it, ends it.

A worker has its own session, a cleared environment, a private scratch folder and no inherited descriptors but its
three. Whatever it does (hang, crash, exit, answer nonsense) becomes a SubmissionError with a status; its whole
process group is killed when the worker is closed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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

from bench.errors import ProtocolError, SubmissionCrash, SubmissionError, SubmissionTimeout, UsageError
from bench.submission import Submission, resolve_args
from bench.worker.memory import peak_bytes_of_group
from bench.worker.wire import Channel, MemoryFile

LOG_BYTES = 64 << 10
MAX_DIM = 65_536
MAX_SIDE_PX = 4096
MAX_TOKEN_VALUES = 1 << 24
KEPT_IMAGE_BLOCKS = 64
Shape = tuple[int | str, ...]
_LARGEST = {"dim": MAX_DIM, "height": MAX_SIDE_PX, "width": MAX_SIDE_PX}
_KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TORCH_HOME"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
)


@dataclass(frozen=True)
class WorkerSettings:
    """How a submission is run.

    Args:
        device: torch's name of the device.
        dtype: "float32" or "bfloat16".
        offline: nothing may be fetched.
        load_timeout_s: wall-clock limit for loading, in seconds.
        batch_timeout_s: wall-clock limit for one batch, in seconds.
    """

    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False
    load_timeout_s: float = 600.0
    batch_timeout_s: float = 600.0


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

    def __init__(self, submission: Submission, settings: WorkerSettings) -> None:
        self._submission, self._settings = submission, settings
        self.autograd_calls = self.detached_gradients = self._n_graphs = 0
        self._graph: _Graph | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="rove-worker-"))
        self._inbox, self._outbox = MemoryFile.create(), MemoryFile.create()
        ours, theirs = socket.socketpair()
        self._stream, self._channel = ours, Channel(ours)
        with theirs:
            self._process = self._start(theirs)
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
        return None if self._process.poll() is not None else peak_bytes_of_group(self._process.pid)

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
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._channel.send({"op": "bye"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
        self._kill()
        if self._stream.fileno() >= 0:
            self._stream.close()
            self._log.close()
            self._inbox.close()
            self._outbox.close()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        descriptors = {"control": theirs.fileno(), "inbox": self._inbox.descriptor, "outbox": self._outbox.descriptor}
        command = [sys.executable, "-P", "-m", "bench.worker.child"]
        for name, descriptor in descriptors.items():
            command += [f"--{name}", str(descriptor)]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._scratch,
            env=_environment(self._scratch, self._settings.offline),
            pass_fds=list(descriptors.values()),
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
                weights_sha256=str(answer["weights_sha256"]),
                parameters=None if answer["parameters"] is None else int(answer["parameters"]),
                versions={str(key): str(value) for key, value in answer["versions"].items()},
                device_name=str(answer["device_name"]),
                load_s=time.perf_counter() - started,
                differentiable=answer["differentiable"] is True,
                reranker=answer["reranker"] is True,
                differentiable_reranker=answer["differentiable_reranker"] is True,
                tower_ids={str(key): str(value) for key, value in answer["tower_ids"].items()},
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
        name = self._submission.name
        try:
            self._channel.send(request)
            answer = self._channel.receive(timeout_s)
        except TimeoutError:
            self._kill()
            raise SubmissionTimeout(
                f"{name} did not answer '{request['op']}' within {timeout_s:g} s and was stopped. "
                "A smaller --batch-size or a longer --timeout may help." + self._log.tail()
            ) from None
        except (ValueError, RecursionError) as error:
            self._kill()
            raise ProtocolError(f"{name} wrote something else to the control channel: {error}.") from None
        except OSError:
            answer = None
        if answer is None:
            raise self._crash(request["op"])
        if not answer.get("ok"):
            raise self._failure(answer)
        self.autograd_calls += self._count(answer.get("autograd_calls", 0), "backward passes")
        return answer

    def _mean_flops(self, answers: Sequence[dict[str, Any]]) -> int | None:
        counts = [answer.get("flops") for answer in answers]
        told = [self._count(count, "floating-point operations") for count in counts if count is not None]
        return round(sum(told) / len(told)) if told and len(told) == len(counts) else None

    def _count(self, count: object, things: str) -> int:
        if type(count) is not int or count < 0:
            raise ProtocolError(f"{self._submission.name} counted {count!r} {things}; expected a number from 0 on.")
        return count

    def _crash(self, operation: str) -> SubmissionCrash:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._kill()
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return SubmissionCrash(
            f"{self._submission.name} ended during '{operation}' ({how}); expected an answer." + self._log.tail()
        )

    def _failure(self, answer: dict[str, Any]) -> SubmissionError:
        kind = ProtocolError if answer.get("status") == "protocol" else SubmissionError
        trace = str(answer.get("traceback", ""))[-4000:]
        error = kind(f"{self._submission.name}: {str(answer.get('error'))[:2000]}" + (f"\n{trace}" if trace else ""))
        if answer.get("status") == "oom":
            error.status = "oom"
        return error

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

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


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


def _environment(scratch: Path, offline: bool) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    source = str(Path(__file__).resolve().parents[2])
    fixed = {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
    # Pillow would give the memory of every batch back: page faults then cost more than copying the pixels does.
    pillow = {"PILLOW_BLOCKS_MAX": str(KEPT_IMAGE_BLOCKS)}
    hub = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {}
    return {**kept, **fixed, **pillow, **hub, "TOKENIZERS_PARALLELISM": "false"}


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
