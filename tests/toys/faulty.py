"""Submissions that do what they must not; each function is a `load`."""

from __future__ import annotations

import os
import sys
import time

import numpy as np


class Encoder:
    """An honest encoder, of which one method is replaced."""

    def __init__(self, images=None, texts=None):
        self._images, self._texts = images or unit_vectors, texts or unit_vectors

    def encode_images(self, images):
        return self._images(images)

    def encode_texts(self, texts):
        return self._texts(texts)


def unit_vectors(items):
    return np.ones((len(items), 4), np.float32)


def honest(context):
    return Encoder()


def half_precision(context):
    return Encoder(images=lambda items: np.ones((len(items), 4), np.float16))


def one_too_few(context):
    return Encoder(images=lambda items: np.ones((len(items) - 1, 4), np.float32))


def three_axes(context):
    return Encoder(images=lambda items: np.ones((len(items), 2, 2), np.float32))


def nested_lists(context):
    return Encoder(images=lambda items: [[1.0, 2.0]] * len(items))


def objects(context):
    return Encoder(images=lambda items: np.array([[object()]] * len(items)))


def raises(context):
    def fail(items):
        raise ValueError("the weights are in the other jacket")

    return Encoder(images=fail)


def exits_quietly(context):
    return Encoder(images=lambda items: os._exit(0))


def segfaults(context):
    return Encoder(images=lambda items: os.kill(os.getpid(), 11))


def hangs(context):
    return Encoder(images=lambda items: time.sleep(3600))


def out_of_memory(context):
    def fail(items):
        raise MemoryError("no more")

    return Encoder(images=fail)


def floods(context):
    def flood(items):
        for _ in range(200):
            sys.stdout.write("x" * 10_000)
        sys.stdout.flush()
        return unit_vectors(items)

    return Encoder(images=flood)


def not_finite(context):
    def vectors(items):
        found = unit_vectors(items)
        found[0, 1] = np.nan
        return found

    return Encoder(images=vectors)


def zero(context):
    return Encoder(texts=lambda items: np.zeros((len(items), 4), np.float32))


def no_encoder(context):
    return object()


def crash_on_load(context):
    os._exit(3)
