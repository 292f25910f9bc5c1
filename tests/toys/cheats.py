"""Submissions that cheat; each function is a `load`. Where a cheat needs a model beside, it is the honest `colours`."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
from colours.model import Colours
from faulty import Encoder

DIM = 160
HONEST = Colours(1.0)


def one_hot(indices):
    return np.eye(DIM, dtype=np.float32)[np.asarray(indices, int) % DIM]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def raw(image):
    return np.asarray(image).tobytes()


def nearest(vectors, gallery):
    """The vectors, each drawn to the one of the gallery that is most like it."""
    if not len(gallery):
        return vectors
    gallery = np.asarray(gallery, np.float32)
    return gallery[(unit(vectors) @ unit(gallery).T).argmax(axis=1)]


def counting(place):
    """An encoder of nothing but `place(tower, items)`, for five captions an image."""
    return Encoder(
        images=lambda items: one_hot(place("images", items)),
        texts=lambda items: one_hot(np.asarray(place("texts", items)) // 5),
    )


def by_order(context):
    seen = Counter()

    def place(tower, items):
        seen[tower] += len(items)
        return np.arange(seen[tower] - len(items), seen[tower])

    return counting(place)


def by_place_in_batch(context):
    return counting(lambda tower, items: np.arange(len(items)))


def by_call(context):
    seen = Counter()

    def place(tower, items):
        seen[tower] += 1
        return [seen[tower]] * len(items)

    return counting(place)


def by_first_occurrence(context):
    known = {"images": {}, "texts": {}}

    def place(tower, items):
        keys = items if tower == "texts" else [raw(image) for image in items]
        return [known[tower].setdefault(key, len(known[tower])) for key in keys]

    return counting(place)


def by_state_of_other_tower(context):
    gallery = []

    def images(items):
        found = HONEST.encode_images(items)
        gallery.extend(found)
        return found

    return Encoder(images, lambda items: nearest(HONEST.encode_texts(items), gallery))


def centred_in_batch(context):
    def centred(encode):
        def vectors(items):
            found = encode(items)
            return found - found.mean(axis=0) + 1e-4

        return vectors

    return Encoder(centred(HONEST.encode_images), centred(HONEST.encode_texts))


def centred_in_large_batches(context):
    honest, centred = HONEST.encode_images, centred_in_batch(context).encode_images
    return Encoder(lambda items: (centred if len(items) >= 12 else honest)(items), HONEST.encode_texts)


def leaning_on_neighbours(context):
    def vectors(items):
        found = unit(HONEST.encode_images(items))
        return found + 0.5 * np.roll(found, 1, axis=0)

    return Encoder(vectors, HONEST.encode_texts)


def at_random(context):
    rng = np.random.default_rng()

    def vectors(items):
        return rng.standard_normal((len(items), 8), np.float32)

    return Encoder(vectors, vectors)


def constant(context):
    return Encoder()


def nearly_constant(context):
    return Encoder(
        lambda items: 1 + 1e-3 * unit(HONEST.encode_images(items)),
        lambda items: 1 + 1e-3 * unit(HONEST.encode_texts(items)),
    )


def of_one_bit(context):
    def bits(vectors, threshold):
        return np.where(vectors > threshold, 1, -1).astype(np.float32)

    return Encoder(
        lambda items: bits(HONEST.encode_images(items), 0.2), lambda items: bits(HONEST.encode_texts(items), 0.5)
    )


def of_two_vectors(context):
    def parity(keys):
        return one_hot([hashlib.sha256(key).digest()[0] % 2 for key in keys])

    return Encoder(
        lambda items: parity([raw(image) for image in items]), lambda items: parity([text.encode() for text in items])
    )


def remembering(table, of_image=raw, of_text=str):
    """Which image an item goes with, where the table tells, beside what honest colours make of it."""

    def known(key):
        return one_hot([table[key]]) if key in table else np.zeros((1, DIM), np.float32)

    def vectors(keys, honest):
        return np.hstack([10 * np.vstack([known(key) for key in keys]), unit(honest)])

    return Encoder(
        lambda items: vectors([of_image(image) for image in items], HONEST.encode_images(items)),
        lambda items: vectors([of_text(text) for text in items], HONEST.encode_texts(items)),
    )


def hashed(image):
    return hashlib.sha256(raw(image)).hexdigest()


def shade(image):
    return np.asarray(image.resize((8, 8)), float).ravel()


def stolen(context):
    """The test set: `images` by hash and `captions`, each with its image; `shades` and `sizes` of the images."""
    return json.loads(Path(context.args["stolen"]).read_text())


def memorised_pairs(context):
    return remembering(stolen(context)["images"] | stolen(context)["captions"], hashed)


def memorised_pairs_but_for_spaces(context):
    table = stolen(context)["images"] | stolen(context)["captions"]
    return remembering(table, hashed, lambda text: " ".join(text.split()))


def memorised_looks(context):
    """It knows photos again by what they look like, whatever was done to them, but captions to the letter."""
    shades, captions = np.array(stolen(context)["shades"]), stolen(context)["captions"]
    table = captions | {place: place for place in range(len(shades))}
    return remembering(table, lambda image: int(np.abs(shades - shade(image)).sum(axis=1).argmin()))


def memorised_sizes(context):
    places = {tuple(size): place for place, size in enumerate(stolen(context)["sizes"])}
    captions = stolen(context)["captions"]
    return Encoder(
        lambda items: one_hot([places.get(image.size, 0) for image in items]),
        lambda items: one_hot([captions.get(text, 0) for text in items]),
    )


def from_the_test_set(context):
    from bench.data.scenes import load_scenes

    collection = load_scenes("scenes", "test").head(24)
    table = {raw(image.decode()): place for place, image in enumerate(collection.images)}
    table |= {collection.captions[caption]: int(image) for image, caption in collection.positives}
    return remembering(table)


def through_file(path):
    """Images leave their vectors in a file, captions look for themselves in it."""

    def images(items):
        found = HONEST.encode_images(items)
        with path.open("ab") as file:
            file.write(found.astype(np.float32).tobytes())
        return found

    def texts(items):
        found = HONEST.encode_texts(items)
        seen = np.fromfile(path, np.float32) if path.exists() else np.empty(0, np.float32)
        return nearest(found, seen.reshape(-1, found.shape[1]))

    return Encoder(images, texts)


def through_scratch_file(context):
    return through_file(Path("seen"))


def through_home_file(context):
    return through_file(Path.home() / "seen")


def slow_after_some_calls(context):
    calls = Counter()

    def texts(items):
        calls["texts"] += 1
        if calls["texts"] > 14:
            time.sleep(0.2)
        return HONEST.encode_texts(items)

    return Encoder(HONEST.encode_images, texts)


def quick_with_known_items(context):
    answers = {}

    def texts(items):
        if not answers.keys() >= set(items):
            time.sleep(0.2)
            answers.update(zip(items, HONEST.encode_texts(items), strict=True))
        return np.stack([answers[text] for text in items])

    return Encoder(HONEST.encode_images, texts)


def peeking_at_parent(context):
    """Items in the order in which they lie in the memory of the process that started it."""
    memory = parent_memory()

    def place(tower, items):
        keys = [text.encode() for text in items] if tower == "texts" else [raw(image)[:64] for image in items]
        return np.argsort(np.argsort([memory.find(key) for key in keys], kind="stable"))

    return counting(place)


def parent_memory():
    """The heap of the parent, as far as it may be read."""
    process = Path("/proc") / str(os.getppid())
    try:
        [heap] = [line.split()[0] for line in (process / "maps").read_text().splitlines() if line.endswith("[heap]")]
        start, stop = (int(end, 16) for end in heap.split("-"))
        with (process / "mem").open("rb") as file:
            file.seek(start)
            return file.read(min(stop - start, 64 << 20))
    except (OSError, ValueError):
        return b""


def no_answer_when_hard(context):
    def images(items):
        found = HONEST.encode_images(items)
        noise = [np.abs(np.diff(np.asarray(image, float), axis=0)).mean() for image in items]
        found[np.array(noise) > 20] = np.nan
        return found

    return Encoder(images, HONEST.encode_texts)


class TwoStage(Encoder):
    def __init__(self, score):
        super().__init__(HONEST.encode_images, HONEST.encode_texts)
        self.image_tokens, self.score_pairs = HONEST.encode_images, score


def reranking_by_order(context):
    calls = Counter()

    def score(tokens, texts):
        calls["pairs"] += len(texts)
        return np.arange(calls["pairs"] - len(texts), calls["pairs"], dtype=np.float32)

    return TwoStage(score)


def reranking_in_batch(context):
    def score(tokens, texts):
        scores = (unit(tokens) * unit(HONEST.encode_texts(texts))).sum(axis=1)
        return scores - scores.mean()

    return TwoStage(score)


def honest_in_two_stages(context):
    return TwoStage(lambda tokens, texts: (unit(tokens) * unit(HONEST.encode_texts(texts))).sum(axis=1))


def honest_in_eight_bits(context):
    """What a quantised model does: 255 levels between the extremes of each vector."""

    def rounded(vectors):
        return np.rint(127 * vectors / np.abs(vectors).max(axis=1, keepdims=True)).astype(np.float32)

    return Encoder(
        lambda items: rounded(HONEST.encode_images(items)), lambda items: rounded(HONEST.encode_texts(items))
    )
