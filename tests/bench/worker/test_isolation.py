"""What a submission can reach at each level, tried by some that try; a level that this machine lacks is skipped."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ProtocolError, SubmissionCrash, SubmissionError, SubmissionOutOfMemory, SubmissionTimeout
from bench.submission import find_submission
from bench.worker import isolation
from bench.worker.guard import SWEEP_S
from bench.worker.host import Worker, WorkerSettings
from bench.worker.isolation import Isolation, Level, best_level, choose_isolation
from bench.worker.sandbox import calls_filter, landlock_version

IMAGES = [np.zeros((4, 4, 3), np.uint8)]
LEVELS: tuple[Level, ...] = ("L0", "L1", "L2", "L3")
HEAD = """
import os, signal, socket, subprocess, sys, time
import numpy as np

class Encoder:
    def __init__(self, context):
        self.context = context
    def encode_images(self, images):
        return np.ones((len(images), 4), np.float32)
    def encode_texts(self, texts):
        return np.array([[1 + bool(attempt(self.context, text))] for text in texts], np.float32)

def load(context):
    return Encoder(context)
"""


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    if LEVELS.index(request.param) > LEVELS.index(best_level()):
        pytest.skip(f"this machine offers {best_level()} at most")
    return request.param


@pytest.fixture(params=["L2", "L3"])
def confined(request: pytest.FixtureRequest) -> Level:
    if LEVELS.index(request.param) > LEVELS.index(best_level()):
        pytest.skip(f"this machine offers {best_level()} at most")
    return request.param


def start(folder: Path, code: str, level: Level, **settings: object) -> Worker:
    """A worker on a submission in `folder` that answers a text with 2 if `attempt(context, text)` is true, else 1."""
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(HEAD + code)
    found = find_submission(f"{folder / 'plugin.py'}:load")
    return Worker(found, WorkerSettings(isolation=Isolation(level), **settings))


def attempt(folder: Path, code: str, level: Level, text: str = "") -> bool:
    with start(folder, f"def attempt(context, text):\n    {code}\n", level) as worker:
        return worker.encode_texts([text])[0, 0] == 2


def is_running(marker: str) -> bool:
    """Whether a process runs whose command line holds the marker, in whatever namespace."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    "code",
    [
        "open(text).read()",
        "os.listdir(os.path.dirname(text))",
        "open(text, 'a')",
        "os.remove(text)",
        "open(__file__, 'a')",
        "open('/tmp/rove-escape', 'w')",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "os.kill(int(text.rpartition('/')[2].partition('-')[0]), 0)",
        "open('/proc/%d/environ' % int(text.rpartition('/')[2].partition('-')[0])).read()",
        "subprocess.run(['cat', text], check=True, stderr=subprocess.DEVNULL)",
    ],
)
def test_what_is_out_of_reach_stays_so(code: str, confined: Level, tmp_path: Path) -> None:
    # Named by the harness's number, so that a submission can be told of both in one text.
    secret = tmp_path / "elsewhere" / f"{os.getpid()}-secret"
    secret.parent.mkdir()
    secret.write_text("right answers")
    refused = "except (OSError, subprocess.CalledProcessError):\n        return False"
    trying = f"try:\n        {code}\n    {refused}\n    return True"
    assert not attempt(tmp_path / "plugin", trying, confined, str(secret))
    assert secret.read_text() == "right answers"
    assert attempt(tmp_path / "plugin", trying, "L0", str(secret)), "the attempt itself is broken"
    Path("/tmp/rove-escape").unlink(missing_ok=True)


def test_what_a_submission_needs_is_within_reach(level: Level, tmp_path: Path) -> None:
    code = (
        "open(os.path.join(os.path.dirname(__file__), 'plugin.py')).read()\n"
        "    open('scratch', 'w').write('x'), os.makedirs(os.path.expanduser('~/.cache/own'))\n"
        "    import json, sqlite3, tempfile, threading\n"
        "    tempfile.TemporaryFile().write(b'x')\n"
        "    threading.Thread(target=time.time).start()\n"
        "    subprocess.run([sys.executable, '-c', 'pass'], check=True)\n"
        "    socket.socketpair()\n"
        "    return open('/dev/urandom', 'rb').read(1) and os.cpu_count()"
    )
    home = tmp_path / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        assert attempt(tmp_path / "plugin", code, level)


def test_files_that_arguments_name_can_be_read(confined: Level, tmp_path: Path) -> None:
    head = tmp_path / "elsewhere" / "head.bin"
    head.parent.mkdir()
    head.write_text("weights")
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "submission.toml").write_text('name = "headed"\n[args]\nhead = ""\n')
    reads = "def attempt(context, text):\n    return open(context.args['head']).read() == 'weights'\n"
    (folder / "model.py").write_text(HEAD + reads)
    found = find_submission(str(folder), {"head": str(head)})
    with Worker(found, WorkerSettings(isolation=Isolation(confined))) as worker:
        assert worker.encode_texts([""])[0, 0] == 2


def test_orphans_that_left_the_session_are_ended(level: Level, tmp_path: Path) -> None:
    marker = f"orphan-{uuid.uuid4().hex}"
    code = (
        "def attempt(context, text):\n"
        "    for _ in range(3):\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            if os.fork() == 0:\n"
        "                signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "                os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', text])\n"
        "            os._exit(0)\n"
        "    time.sleep(0.5)\n"
    )
    with start(tmp_path / "plugin", code, level) as worker:
        worker.encode_texts([marker])
        assert is_running(marker)
    assert not is_running(marker)


def test_nothing_is_left_when_the_harness_is_killed(level: Level, tmp_path: Path) -> None:
    marker = f"harness-{uuid.uuid4().hex}"
    code = (
        "def attempt(context, text):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', text], start_new_session=True)\n"
    )
    child = os.fork()
    if child == 0:
        worker = start(tmp_path / "plugin", code, level)
        worker.encode_texts([marker])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + SWEEP_S
    while is_running(marker) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not is_running(marker)


@pytest.mark.parametrize("level", ["L0", "L1"])
def test_a_submission_that_kills_its_guard_has_crashed(level: Level, tmp_path: Path) -> None:
    with (
        start(
            tmp_path / "plugin",
            "def attempt(context, text):\n    os.kill(os.getppid(), 9)\n    time.sleep(600)\n",
            level,
        ) as worker,
        pytest.raises(SubmissionCrash, match="its guard was killed"),
    ):
        worker.encode_texts([""])


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("held = []\n    while True:\n        held.append(np.ones(4 << 20))", id="bit by bit"),
        pytest.param("np.zeros(1 << 44)", id="at once"),
        pytest.param(
            "import torch\n    torch.empty(1 << 44)",
            id="torch",
        ),
        pytest.param(
            "hog = 'import numpy, time; held = numpy.ones(1 << 27); time.sleep(60)'\n"
            "    subprocess.run([sys.executable, '-c', hog])",
            id="in a child",
        ),
    ],
)
def test_too_much_memory_is_its_own_status(code: str, tmp_path: Path) -> None:
    attempts = f"def attempt(context, text):\n    {code}\n"
    with start(tmp_path / "plugin", attempts, "L1", memory_bytes=600 << 20) as worker:
        with pytest.raises(SubmissionOutOfMemory) as caught:
            worker.encode_texts([""])
        assert caught.value.status == "oom"


def test_a_cell_has_a_limit_of_its_own(tmp_path: Path) -> None:
    settings = {"batch_timeout_s": 60.0}
    with start(tmp_path / "plugin", "def attempt(context, text):\n    time.sleep(0.4)\n", "L1", **settings) as worker:
        worker.encode_texts([""])
        worker._settings.cell.restart(0.2)
        with pytest.raises(SubmissionTimeout, match="the cell may take"):
            worker.encode_texts([""])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os._exit(77)", "exit status 77"),
        ("os._exit(0)", "exit status 0"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", r"signal 37"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("os.killpg(0, signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_an_end_is_told_as_it_was(code: str, words: str, level: Level, tmp_path: Path) -> None:
    ends = f"def attempt(context, text):\n    {code}\n"
    with start(tmp_path / "plugin", ends, level) as worker, pytest.raises(SubmissionCrash, match=words):
        worker.encode_texts([""])


@pytest.mark.parametrize(
    "forged",
    [
        {"weights_sha256": "x" * 64},
        {"weights_sha256": 7},
        {"parameters": -1},
        {"parameters": 1e30},
        {"parameters": True},
        {"versions": {"torch": "1\n2"}},
        {"versions": {str(i): "" for i in range(5000)}},
        {"device_name": "\x1b[31m"},
        {"tower_ids": {"images": "x" * 10_000}},
        {"tower_ids": ["images"]},
    ],
)
def test_forged_facts_are_refused(forged: dict[str, object], tmp_path: Path) -> None:
    code = (
        "def attempt(context, text):\n    return True\n"
        "channel = sys.modules['__main__'].Channel\n"
        "honest = channel.send\n"
        f"channel.send = lambda self, message: honest(self, {{**message, **{forged!r}}})\n"
    )
    with pytest.raises(ProtocolError, match=r"nonsense|counted"):
        start(tmp_path / "plugin", code, "L1")


def test_a_hint_tells_what_confinement_takes_away(confined: Level, tmp_path: Path) -> None:
    code = "def attempt(context, text):\n    return open('/root/.netrc-of-nobody')\n"
    with (
        start(tmp_path / "plugin", code, confined) as worker,
        pytest.raises(SubmissionError, match="fetches = true"),
    ):
        worker.encode_texts([""])


def test_a_submission_has_no_descriptor_of_its_scratch_folder(tmp_path: Path) -> None:
    code = "return any(os.path.isdir(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd'))"
    assert not attempt(tmp_path / "plugin", code, "L1")


def test_modes_choose_levels() -> None:
    assert [str(choose_isolation(mode)) for mode in ("none", "process")] == ["L0", "L1"]
    best = best_level()
    assert str(choose_isolation("auto")) == best
    if Isolation(best).confined:
        assert str(choose_isolation("strict")) == f"{best} separate"


@pytest.mark.skipif(landlock_version() == 0, reason="needs a kernel with Landlock")
def test_a_kernel_with_landlock_can_confine() -> None:
    assert Isolation(best_level()).confined


@pytest.mark.parametrize(
    ("signal_number", "kills", "holds"),
    [(9, 2, True), (9, 3, False), (0, 1, False)],
    ids=["killed twice", "always", "not at all"],
)
def test_a_probe_that_is_killed_shows_nothing(
    signal_number: int, kills: int, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is tried, which tells; one that ends by itself and has told nothing is not confined."""
    end = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal_number})"]
    tell = [sys.executable, "-c", "open('told', 'w')"]
    commands = iter([end] * kills + [tell])
    monkeypatch.setattr(isolation, "landlock_version", lambda: 1)
    monkeypatch.setattr(isolation, "confine", lambda *args: next(commands))
    assert isolation._holds("L2") is holds


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_whole(machine: str) -> None:
    """Every jump of the program lands on one of its instructions, and the last one returns."""
    code = np.frombuffer(calls_filter(machine, network=False), "<u2, u1, u1, <u4")
    for row, (kind, if_true, if_false, _) in enumerate(code.tolist()):
        if kind & 0x07 == 0x05:
            assert row + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06
