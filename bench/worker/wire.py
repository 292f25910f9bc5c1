"""What passes between the harness and a submission's process: JSON lines on a socket, arrays in memory files.

Nothing is pickled. Both memory files are made by the harness; the worker writes its embeddings into one of them, and
the harness copies what it needs before it looks at it.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

MAX_MESSAGE_BYTES = 64 << 20


class Channel:
    """JSON messages, one a line, over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._pending = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message.

        Raises:
            OSError: the other side is gone.
        """
        self._stream.settimeout(None)
        self._stream.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message, or None when the other side has closed.

        Raises:
            TimeoutError: nothing whole arrived within `timeout_s` seconds.
            ValueError: what arrived is not a JSON object, or longer than `MAX_MESSAGE_BYTES`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        chunk = bytes(self._pending)
        while b"\n" not in chunk:
            self._stream.settimeout(_remaining(deadline))
            chunk = self._stream.recv(1 << 16)
            if not chunk:
                return None
            self._pending += chunk
            if len(self._pending) > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message is longer than {MAX_MESSAGE_BYTES} bytes")
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending = bytearray(rest)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"expected a JSON object, got {type(message).__name__}")
        return message


class MemoryFile:
    """An anonymous file in memory that two processes share; it grows when needed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> MemoryFile:
        """A new empty one, whose descriptor a child process may inherit."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("rove", 0))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        """Replaces the contents with the bytes of `arrays`, one after the other."""
        start = 0
        for array in arrays:
            rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            while rest:
                written = os.pwrite(self.descriptor, rest, start)
                start, rest = start + written, rest[written:]

    def read(self, n_bytes: int, start: int = 0) -> UInt8[np.ndarray, " n_bytes"]:
        """A copy of the `n_bytes` from `start` on.

        Raises:
            ValueError: the file is shorter.
        """
        size = os.fstat(self.descriptor).st_size
        if size < start + n_bytes:
            raise ValueError(f"the memory file holds {size} bytes, not {start + n_bytes}")
        contents = np.empty(n_bytes, np.uint8)
        done = 0
        while done < n_bytes:
            count = os.preadv(self.descriptor, [contents.data[done:]], start + done)
            if not count:
                raise ValueError(f"the memory file shrank to {start + done} bytes while it was read")
            done += count
        return contents

    def close(self) -> None:
        os.close(self.descriptor)


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
