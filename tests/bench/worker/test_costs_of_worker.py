"""Operations and memory of a worker: against counts by hand, published ones, and what the process says of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from bench.errors import ProtocolError
from bench.submission import find_submission
from bench.worker.flops import count_flops
from bench.worker.host import Flops, Worker, WorkerSettings

TOYS = Path(__file__).parents[2] / "toys"
IMAGE = np.full((20, 30, 3), 99, np.uint8)
N, DIM, WIDE = 10, 64, 128
STATES = torch.ones(1, N, DIM)
HEADS = torch.ones(1, 4, N, 16)
ATTENTION = 2 * 2 * N * N * DIM
PROJECTIONS = 4 * 2 * N * DIM * DIM

BY_HAND: dict[str, tuple[Callable[[], object], int]] = {
    "linear": (lambda: nn.Linear(DIM, 32)(STATES), 2 * N * DIM * 32),
    "linear of one vector": (lambda: nn.Linear(DIM, 32)(STATES[0, 0]), 2 * DIM * 32),
    "matrix by vector": (lambda: STATES[0] @ STATES[0, 0], 2 * N * DIM),
    "biased matrix by vector": (lambda: torch.addmv(torch.ones(N), STATES[0], STATES[0, 0]), 2 * N * DIM),
    "cosine": (lambda: torch.dot(STATES[0, 0], STATES[0, 0]), 2 * DIM),
    "convolution": (lambda: nn.Conv2d(3, 8, 3, padding=1)(torch.ones(1, 3, 16, 16)), 2 * 27 * 8 * 256),
    "depthwise convolution": (lambda: nn.Conv2d(8, 8, 3, groups=8)(torch.ones(1, 8, 6, 6)), 2 * 9 * 8 * 16),
    "fused attention": (lambda: functional.scaled_dot_product_attention(HEADS, HEADS, HEADS), ATTENTION),
    "cross attention": (
        lambda: functional.scaled_dot_product_attention(HEADS[:, :, :3], HEADS, HEADS),
        ATTENTION * 3 // N,
    ),
    "attention layer": (
        lambda: nn.MultiheadAttention(DIM, 4, batch_first=True).eval()(STATES, STATES, STATES, need_weights=False),
        PROJECTIONS + ATTENTION,
    ),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(DIM, 4, WIDE, batch_first=True).eval()(STATES),
        PROJECTIONS + ATTENTION + 2 * 2 * N * DIM * WIDE,
    ),
    "lstm": (lambda: nn.LSTM(DIM, 32, batch_first=True).eval()(STATES), 2 * N * 4 * 32 * (DIM + 32)),
    "lstm both ways, twice": (
        lambda: nn.LSTM(DIM, 32, num_layers=2, bidirectional=True, batch_first=True).eval()(STATES),
        2 * N * 4 * 32 * 2 * ((DIM + 32) + (2 * 32 + 32)),
    ),
    "gru": (lambda: nn.GRU(DIM, 32, batch_first=True).eval()(STATES), 2 * N * 3 * 32 * (DIM + 32)),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_operations_are_those_counted_by_hand(name: str, mode: Callable[[], torch.no_grad]) -> None:
    compute, expected = BY_HAND[name]
    with mode():
        assert count_flops(compute) == expected


def test_counting_leaves_torch_as_it_was() -> None:
    for enabled in (False, True):
        torch.backends.mha.set_fastpath_enabled(enabled)
        with pytest.raises(ZeroDivisionError):
            count_flops(lambda: 1 / 0)
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    assert count_flops(lambda: STATES + 1) is None


def test_operations_are_those_published_by_torchvision() -> None:
    published = models.ResNet18_Weights.DEFAULT.meta["_ops"]
    with torch.inference_mode():
        flops = count_flops(lambda: models.resnet18().eval()(torch.zeros(1, 3, 224, 224)))
    assert flops is not None
    assert flops / 2e9 == pytest.approx(published, abs=0.0006)


@pytest.mark.slow
def test_operations_are_those_published_by_open_clip() -> None:
    """Source: open_clip, docs/model_profile.csv: 8.82 and 5.96 GFLOPs."""
    model = open_clip.create_model("ViT-B-32").eval()
    with torch.inference_mode():
        image = count_flops(lambda: model.encode_image(torch.zeros(1, 3, 224, 224)))
        text = count_flops(lambda: model.encode_text(torch.zeros(1, 77, dtype=torch.long)))
    assert image is not None
    assert text is not None
    assert (round(image / 1e9, 2), round(text / 1e9, 2)) == (8.82, 5.96)


def transformer_flops(n_tokens: int, width: int, n_layers: int) -> int:
    """Four projections, two layers of four times the width, and attention."""
    return n_layers * (2 * n_tokens * 12 * width**2 + 4 * n_tokens**2 * width)


def test_a_whole_submission_counts_each_item_alone() -> None:
    texts = ["a", "a red ball on a green field"]
    with Worker(find_submission("tiny"), WorkerSettings()) as worker:
        before = worker.encode_images([IMAGE])
        flops = worker.count_flops([IMAGE] * 3, texts)
        short, long = (worker.count_flops([], [text]) for text in texts)
        assert np.array_equal(worker.encode_images([IMAGE]), before)
    patches = 2 * 36 * 3 * 16**2 * 192
    assert flops.per_image == patches + transformer_flops(37, 192, 8) + 2 * 192 * 256
    assert short == Flops(None, transformer_flops(3, 160, 3) + 2 * 160 * 256, None)
    assert long.per_text is not None
    assert flops.per_text == round((short.per_text + long.per_text) / 2)
    assert flops.per_pair is None


RERANKER = """
import numpy as np, torch
class Pairs:
    def encode_images(self, images):
        return np.ones((len(images), 4), np.float32)
    def encode_texts(self, texts):
        return np.ones((len(texts), 4), np.float32)
    def image_tokens(self, images):
        return np.ones((len(images), 5, 8), np.float16)
    def score_pairs(self, tokens, texts):
        states = torch.from_numpy(tokens).float() @ torch.ones(8, 3)
        return states.sum(dim=(1, 2)).numpy()
def load(context):
    return Pairs()
"""


def test_a_pair_is_the_tokens_of_one_image_with_one_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(RERANKER)
    with Worker(find_submission(f"{tmp_path / 'pairs.py'}:load"), WorkerSettings()) as worker:
        assert worker.count_flops([IMAGE, IMAGE], ["one", "two", "three"]) == Flops(None, None, 2 * 5 * 8 * 3)


def test_without_torch_nothing_is_counted() -> None:
    with Worker(find_submission(f"{TOYS / 'faulty.py'}:honest"), WorkerSettings()) as worker:
        assert worker.count_flops([IMAGE], ["a"]) == Flops(None, None, None)


@pytest.mark.parametrize("count", ["-1", "2.5", "'many'", "True", "[1]"])
def test_a_count_that_is_none_is_a_fault(tmp_path: Path, count: str) -> None:
    module = tmp_path / "forged.py"
    module.write_text(
        "import sys\nimport numpy as np\n"
        "class Forged:\n"
        "    def encode_images(self, images):\n        return np.ones((len(images), 4), np.float32)\n"
        "    encode_texts = encode_images\n"
        "def load(context):\n"
        f"    sys.modules['__main__'].count_flops = lambda compute: {count}\n"
        "    return Forged()\n"
    )
    with (
        Worker(find_submission(f"{module}:load"), WorkerSettings()) as worker,
        pytest.raises(ProtocolError, match="floating-point operations; expected a number") as caught,
    ):
        worker.count_flops([], ["a"])
    assert caught.value.status == "protocol"


HUNGRY = """
import mmap, subprocess, sys
import numpy as np
CHILD = "import time; held = bytes([1]) * (48 << 20); print(); time.sleep(3600)"
class Hungry:
    def encode_images(self, images):
        passing = np.ones(96 << 20, np.uint8)
        pages = int(open("/proc/self/statm").read().split()[1])
        return np.full((len(images), 1), pages * mmap.PAGESIZE, np.float32)
    def encode_texts(self, texts):
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
        child.stdout.readline()
        return np.ones((len(texts), 1), np.float32)
def load(context):
    return Hungry()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone tells another process's peak")
def test_the_peak_is_what_the_process_and_its_children_held(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    with Worker(find_submission(f"{tmp_path / 'hungry.py'}:load"), WorkerSettings()) as worker:
        before = worker.peak_bytes
        held = float(worker.encode_images([IMAGE])[0, 0])
        after = worker.peak_bytes
        worker.encode_texts(["a"])
        with_child = worker.peak_bytes
    assert before is not None
    assert after is not None
    assert with_child is not None
    assert after == pytest.approx(held, rel=0.04)  # the sandbox's own processes come on top
    assert after - before > 80 << 20
    assert with_child - after > 48 << 20
    assert worker.peak_bytes is None
