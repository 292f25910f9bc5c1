"""The harness's side of the process boundary: starts a submission in a fresh interpreter, feeds it, ends it.

A worker has its own session, a cleared environment, a private scratch folder and no inherited descriptors but its
three. Whatever it does (hang, crash, exit, answer nonsense) becomes a SubmissionError with a status; its whole
process group is killed when the worker is closed.
"""

from __future__ import annotations

import contextlib
import json
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from jaxtyping import Float, UInt8

from bench.errors import ProtocolError, SubmissionCrash, SubmissionError, SubmissionTimeout
from bench.submission import Submission
from bench.worker.wire import Channel, MemoryFile

LOG_BYTES = 64 << 10
MAX_DIM = 65_536
_KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TORCH_HOME"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
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
    """What a worker says of the submission that it loaded."""

    weights_sha256: str
    parameters: int | None
    versions: dict[str, str]
    device_name: str
    load_s: float


class Worker:
    """A submission in its own process; use it as a context manager."""

    def __init__(self, submission: Submission, settings: WorkerSettings) -> None:
        self._submission, self._settings = submission, settings
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

    def encode_images(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n_images dim"]:
        """The submission's embeddings of RGB images of any sizes, as it returned them, (n_images, dim) float32.

        Raises:
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        self._inbox.write(images)
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        answer = self._ask({"op": "images", "sizes": sizes}, self._settings.batch_timeout_s)
        return self._embeddings(answer, len(images), "encode_images", "images")

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """The submission's embeddings of texts, as it returned them, (n_texts, dim) float32.

        Raises:
            SubmissionError: it failed, ran out of time, or returned something else.
        """
        payload = json.dumps(list(texts)).encode()
        self._inbox.write([np.frombuffer(payload, np.uint8)])
        answer = self._ask({"op": "texts", "n_bytes": len(payload)}, self._settings.batch_timeout_s)
        return self._embeddings(answer, len(texts), "encode_texts", "texts")

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
                "args": {name: _absolute(value) for name, value in self._submission.args.items()},
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{self._submission.name} answered the load request with nonsense: {error}.") from None

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
        return answer

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

    def _embeddings(self, answer: dict[str, Any], count: int, function: str, items: str) -> np.ndarray:
        shape, dtype = answer.get("shape"), answer.get("dtype")
        name = f"{self._submission.name}.{function}"
        fits = isinstance(shape, list) and len(shape) == 2 and shape[0] == count and isinstance(shape[1], int)
        if not fits or not isinstance(shape, list) or not 0 < shape[1] <= MAX_DIM or dtype != "<f4":
            raise ProtocolError(
                f"{name} returned {_described(shape)} {_dtype_name(dtype)} for {count} {items}; "
                f"expected ({count}, dim) float32. See submissions/README.md."
            )
        try:
            raw = self._outbox.read(count * shape[1] * 4)
        except ValueError as error:
            raise ProtocolError(f"{name} announced {_described(shape)} but {error}.") from None
        return np.frombuffer(raw, np.float32).reshape(count, shape[1])

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
    hub = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {}
    return {**kept, **fixed, **hub, "TOKENIZERS_PARALLELISM": "false"}


def _absolute(value: str) -> str:
    """An argument that names an existing file, made independent of the folder that the worker runs in."""
    path = Path(value).expanduser()
    return str(path.resolve()) if path.is_file() else value


def _described(shape: object) -> str:
    return f"({', '.join(str(side) for side in shape)})" if isinstance(shape, list) else "no shape"


def _dtype_name(dtype: object) -> str:
    try:
        return np.dtype(str(dtype)).name
    except TypeError:
        return "of no dtype"
