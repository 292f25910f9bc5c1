"""The process boundary: honest submissions answer, faulty ones end with the right status and leave nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ProtocolError, SubmissionCrash, SubmissionError, SubmissionTimeout
from bench.submission import find_submission
from bench.worker.host import Worker, WorkerSettings

TOYS = Path(__file__).parents[2] / "toys"
IMAGES = [np.full((5 + i, 7, 3), 10 * i, np.uint8) for i in range(3)]


def start(function: str, **settings: float) -> Worker:
    return Worker(find_submission(f"{TOYS / 'faulty.py'}:{function}"), WorkerSettings(**settings))


def test_images_arrive_as_they_were_sent(tmp_path: Path) -> None:
    module = tmp_path / "sums.py"
    module.write_text(
        "import numpy as np\n"
        "class Sums:\n"
        "    def encode_images(self, images):\n"
        "        return np.array([[i.size[0], i.size[1], np.asarray(i).sum()] for i in images], np.float32)\n"
        "    def encode_texts(self, texts):\n"
        "        return np.array([[len(t), len(t.encode('utf-8', 'surrogatepass')), 1] for t in texts], np.float32)\n"
        "def load(context):\n"
        "    return Sums()\n"
    )
    texts = ["", "naïve", "nul\x00", "\ud800 lone", "x" * 10_000, "👩‍🚀"]
    with Worker(find_submission(f"{module}:load"), WorkerSettings()) as worker:
        images = worker.encode_images(IMAGES)
        again = worker.encode_images(IMAGES[::-1])
        answers = worker.encode_texts(texts)
    assert images.tolist() == [[7, 5 + i, 10 * i * (5 + i) * 7 * 3] for i in range(3)]
    assert again.tolist() == images[::-1].tolist()
    assert answers[:, 0].tolist() == [len(text) for text in texts]
    assert answers[:, 1].tolist() == [len(text.encode("utf-8", "surrogatepass")) for text in texts]


@pytest.mark.parametrize(
    ("function", "kind", "status", "words"),
    [
        ("half_precision", ProtocolError, "protocol", r"\(3, 4\) float16 for 3 images; expected \(3, dim\) float32"),
        ("one_too_few", ProtocolError, "protocol", r"\(2, 4\) float32 for 3 images"),
        ("three_axes", ProtocolError, "protocol", r"\(3, 2, 2\)"),
        ("nested_lists", ProtocolError, "protocol", "a builtins.list"),
        ("objects", ProtocolError, "protocol", "an array of object"),
        ("raises", SubmissionError, "error", "the weights are in the other jacket"),
        ("exits_quietly", SubmissionCrash, "crash", "exit status 0"),
        ("segfaults", SubmissionCrash, "crash", "SIGSEGV"),
        ("out_of_memory", SubmissionError, "oom", "no more"),
    ],
)
def test_a_fault_has_its_status(function: str, kind: type[SubmissionError], status: str, words: str) -> None:
    with start(function) as worker, pytest.raises(kind, match=words) as caught:
        worker.encode_images(IMAGES)
    assert caught.value.status == status


def test_a_worker_that_hangs_is_stopped_at_its_limit() -> None:
    with start("hangs", batch_timeout_s=0.5) as worker:
        started = time.monotonic()
        with pytest.raises(SubmissionTimeout, match=r"within 0\.5 s"):
            worker.encode_images(IMAGES)
        assert time.monotonic() - started < 30


def test_a_flood_of_output_does_not_stop_the_worker() -> None:
    with start("floods") as worker:
        assert worker.encode_images(IMAGES).shape == (3, 4)


@pytest.mark.parametrize(("function", "words"), [("no_encoder", "no encoder"), ("crash_on_load", "exit status 3")])
def test_a_submission_that_does_not_load_is_an_error(function: str, words: str) -> None:
    with pytest.raises(SubmissionError, match=words):
        start(function)


def test_the_environment_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    module = tmp_path / "spy.py"
    module.write_text("import os\ndef load(context):\n    raise ValueError(sorted(os.environ))\n")
    with pytest.raises(SubmissionError) as caught:
        Worker(find_submission(f"{module}:load"), WorkerSettings())
    assert "PATH" in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" not in str(caught.value)
