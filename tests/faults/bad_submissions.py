"""Submissions that fail, each in a way of its own; every function is a `load`, STATUS says what must come of it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np

STATUS: dict[str, str] = {}


class Encoder:
    """An honest encoder of four dimensions, of which a part is replaced."""

    def __init__(self, images=None, texts=None):
        self._images, self._texts = images or vectors, texts or vectors

    def encode_images(self, images):
        return self._images(images)

    def encode_texts(self, texts):
        return self._texts(texts)


def vectors(items):
    return np.random.default_rng(0).standard_normal((len(items), 4)).astype(np.float32)


def bad(status):
    """Registers a `load`, or a function of a batch of images that takes the place of encode_images."""

    def register(function):
        STATUS[function.__name__] = status
        if function.__code__.co_varnames[:1] == ("context",):
            return function
        return lambda context: Encoder(images=function)

    return register


@bad("protocol")
def returns_none(images):
    return None


@bad("protocol")
def returns_lists(images):
    return [[1.0, 2.0]] * len(images)


@bad("protocol")
def returns_objects(images):
    return np.array([[object()]] * len(images))


@bad("protocol")
def returns_text(images):
    return np.array([["a"]] * len(images))


@bad("protocol")
def returns_double(images):
    return np.ones((len(images), 4))


@bad("protocol")
def returns_half(images):
    return np.ones((len(images), 4), np.float16)


@bad("protocol")
def returns_complex(images):
    return np.ones((len(images), 4), np.complex64)


@bad("protocol")
def returns_big_endian(images):
    return np.ones((len(images), 4), ">f4")


@bad("protocol")
def returns_records(images):
    return np.zeros(len(images), [("x", np.float32)])


@bad("protocol")
def returns_one_too_few(images):
    return vectors(images)[1:]


@bad("protocol")
def returns_one_too_many(images):
    return np.concatenate([vectors(images), np.ones((1, 4), np.float32)])


@bad("protocol")
def returns_no_dimensions(images):
    return np.ones((len(images), 0), np.float32)


@bad("protocol")
def returns_one_axis(images):
    return np.ones(len(images), np.float32)


@bad("protocol")
def returns_three_axes(images):
    return np.ones((len(images), 2, 2), np.float32)


@bad("protocol")
def returns_too_many_dimensions(images):
    return np.ones((len(images), 70_000), np.float32)


@bad("protocol")
def changes_its_dimensions(images):
    changes_its_dimensions.calls = getattr(changes_its_dimensions, "calls", 3) + 1
    return np.ones((len(images), changes_its_dimensions.calls), np.float32)


@bad("protocol")
def returns_nan(images):
    return np.full((len(images), 4), np.nan, np.float32)


@bad("protocol")
def returns_one_nan(images):
    found = vectors(images)
    found[-1, -1] = np.nan
    return found


@bad("protocol")
def returns_infinity(images):
    return np.full((len(images), 4), np.inf, np.float32)


@bad("protocol")
def returns_zeros(images):
    return np.zeros((len(images), 4), np.float32)


@bad("error")
def raises(images):
    raise ValueError("the weights are in the other jacket")


@bad("error")
def raises_without_words(images):
    raise RuntimeError


@bad("error")
def raises_escapes(images):
    raise ValueError("\x1b[2J\x1b]0;title\x07 <script>alert(1)</script>" + "x" * 100_000)


@bad("error")
def recurses(images):
    return recurses_deeper(images)


def recurses_deeper(images):
    return recurses_deeper(images) + 1


@bad("error")
def imports_what_is_not_there(context):
    import no_such_package_as_this  # noqa: F401


@bad("protocol")
def loads_nothing(context):
    return None


@bad("protocol")
def loads_half_an_encoder(context):
    return type("Half", (), {"encode_images": lambda self, images: vectors(images)})()


@bad("crash")
def exits_with_0(images):
    os._exit(0)


@bad("crash")
def exits_with_77(images):
    os._exit(77)


@bad("crash")
def exits_by_exception(images):
    raise SystemExit(0)


@bad("crash")
def interrupts_itself(images):
    raise KeyboardInterrupt


@bad("crash")
def exits_while_loading(context):
    os._exit(3)


@bad("crash")
def segfaults(images):
    ctypes.string_at(0)


@bad("crash")
def aborts(images):
    os.abort()


@bad("crash")
def kills_itself(images):
    os.kill(os.getpid(), signal.SIGKILL)


@bad("crash")
def dies_in_real_time(images):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


@bad("crash")
def kills_its_group(images):
    os.killpg(0, signal.SIGKILL)


@bad("timeout")
def hangs(images):
    time.sleep(3600)


@bad("timeout")
def spins(images):
    while True:
        pass


@bad("timeout")
def hangs_deaf(images):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


@bad("timeout")
def stops_itself(images):
    os.kill(os.getpid(), signal.SIGSTOP)


@bad("timeout")
def hangs_in_another_thread(images):
    thread = threading.Thread(target=time.sleep, args=(3600,))
    thread.start()
    thread.join()


@bad("timeout")
def hangs_with_children(images):
    for _ in range(3):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    time.sleep(3600)


@bad("timeout")
def forks_and_forks(images):
    for _ in range(40):
        if os.fork() == 0:
            os.setsid()
            time.sleep(3600)
    time.sleep(3600)


@bad("timeout")
def floods_and_hangs(images):
    while True:
        os.write(1, b"x" * 65_536)


@bad("oom")
def says_that_memory_is_out(images):
    raise MemoryError("no more")


@bad("oom")
def asks_for_too_much(images):
    return np.zeros((1 << 44,), np.float32)


@bad("oom")
def takes_all_memory(images):
    held = []
    while True:
        held.append(np.ones(1 << 24))


@bad("crash")
def closes_all_descriptors(images):
    os.closerange(0, 256)
    return vectors(images)


@bad("protocol")
def writes_to_the_channel(images):
    for descriptor in sockets():
        os.write(descriptor, b"this is no message\n")
    return vectors(images)


@bad("protocol")
def writes_a_deep_message(images):
    for descriptor in sockets():
        os.write(descriptor, b"[" * 50_000 + b"\n")
    return vectors(images)


@bad("protocol")
def writes_without_an_end(images):
    for descriptor in sockets():
        for _ in range(1100):
            os.write(descriptor, b"x" * 65_536)
    return vectors(images)


@bad("protocol")
def announces_more_than_it_sends(images):
    sys.modules["__main__"].MemoryFile.write = lambda self, arrays: None
    return np.ones((len(images), 60_000), np.float32)


@bad("protocol")
def answers_with_a_negative_shape(images):
    channel = sys.modules["__main__"].Channel
    honest = channel.send
    channel.send = lambda self, message: honest(self, {**message, "shape": [-1, 4]})
    return vectors(images)


@bad("protocol")
def answers_with_another_type(images):
    channel = sys.modules["__main__"].Channel
    honest = channel.send
    channel.send = lambda self, message: honest(self, {**message, "dtype": "|O"})
    return vectors(images)


@bad("protocol")
def counts_what_is_no_number(images):
    channel = sys.modules["__main__"].Channel
    honest = channel.send
    channel.send = lambda self, message: honest(self, {**message, "autograd_calls": "many"})
    return vectors(images)


@bad("protocol")
def forges_its_digest(context):
    channel = sys.modules["__main__"].Channel
    honest = channel.send
    channel.send = lambda self, message: honest(self, {**message, "weights_sha256": "<b>mine</b>"})
    return Encoder()


def sockets():
    """Descriptors of this process that are sockets: the way to the harness."""
    for descriptor in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(descriptor)):
                pass
        except OSError:
            continue
        yield descriptor
