"""Replicas of a submission on a Ray cluster: an actor for each, with its own worker, whose tasks are cells.

The process that was started by the user owns the run: it hands out cells, keeps what comes back, and gives a cell whose
actor was lost to another. Nodes need no file system in common, so what one makes and others need goes through the
object store: embeddings lie on a shelf, where they are waited for while somebody makes them, so that the clean side is
encoded once on the whole cluster; attacked items, of which several cells are scored on the same, go back into the run's
folder and out again from there. Shifted images and captions are not shared, since no two cells have the same.

Every node needs the same installation and kind of processor, and submission, data and working folder at the same
paths; each of these is checked. Ray is imported here alone, and torch only where cells are scored: not before the
actor has the environment by which it chooses its number of threads, on which the last bits of its vectors depend.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import torchvision_fix
from bench.errors import InputError, RoveError, UsageError
from bench.examples import claim_examples
from bench.records import Cell, Probe
from bench.store import Scratch, write_atomic

try:
    import ray
    from ray import cloudpickle
except ModuleNotFoundError:
    raise UsageError(
        "--executor ray needs Ray, which is not installed; install it: pip install 'rove-bench[ray]'."
    ) from None

if TYPE_CHECKING:
    from bench.cells import CellInputs
    from bench.embed import Embedded
    from bench.replica import Replica, Score
    from bench.types import ClusterSettings
    from bench.worker.host import Loaded

MOST_LOST = 3
_ANSWER_S, _STOP_S, _REMIND_S = 5.0, 10.0, 60.0
_HANDED_ON = ("ROVE_CACHE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")
_log = logging.getLogger("rove")
Files = dict[str, bytes]
Task = Cell | None
"""What a replica is given: a cell to score, or, None, the probes."""


@contextlib.contextmanager
def connect(settings: ClusterSettings, device: str) -> Iterator[Cluster]:
    """The cluster that `settings` names, or one on this machine; what this starts, it ends, and nothing else.

    Raises:
        UsageError: no cluster answers there, or it has no room for so many replicas.
    """
    own = not ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):  # on which Ray tells of lost processes
        if own:
            _initialise(settings)
        try:
            yield Cluster(settings, device)
        finally:
            if own:
                ray.shutdown()


def _initialise(settings: ClusterSettings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is None:
        n_cpus = max(os.cpu_count() or 1, settings.replicas or 1)
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, **quiet)
        return
    if settings.address.startswith("ray://"):
        raise UsageError(
            f"--ray-address got '{settings.address}'; expected HOST:PORT or auto, on a node of the cluster."
        )
    try:
        if settings.address != "auto":  # Ray would go on trying for many minutes
            host, _, port = settings.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=settings.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster at '{settings.address}': {str(error)[:300]}. `ray start --head` starts one; without "
            "--ray-address this machine is used."
        ) from None


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, settings: ClusterSettings, device: str) -> None:
        self._n_gpus = _choose_gpus(settings.gpus_per_replica, device)
        self.n_replicas = _choose_replicas(settings.replicas, self._n_gpus)
        self._options = {"num_cpus": 1, "num_gpus": self._n_gpus, "scheduling_strategy": "SPREAD"}

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What `function` returns where a replica would run."""
        return _result_of(ray.remote(function).options(**self._options).remote(*arguments))

    def map(
        self, function: Callable[[Any, Any], Any], tasks: Iterable[Any], shared: object, at_most: int | None = None
    ) -> Generator[tuple[Any, Any]]:
        """Every task with what `function(shared, task)` returns on some node, as they are finished.

        One whose process or node is lost is tried again, a few times.

        Args:
            function: of an installed module.
            shared: is sent to each node once.
            at_most: how many run at the same time; None for one on each CPU.

        Raises:
            RoveError: what the function raised, or a task was lost every time.
        """
        room = min(at_most or sys.maxsize, max(1, int(ray.cluster_resources().get("CPU", 1))))
        call = ray.remote(_call).options(max_retries=MOST_LOST - 1, **self._options)
        started_with, held, waiting = _own_start(), ray.put(cloudpickle.dumps((function, shared))), iter(tasks)
        running: dict[Any, Any] = {}
        try:
            while True:
                for task in islice(waiting, room - len(running)):
                    running[call.remote(started_with, held, cloudpickle.dumps(task))] = task
                if not running:
                    return
                for ready in ray.wait([*running], timeout=_REMIND_S)[0]:
                    task = running.pop(ready)
                    try:
                        value = _result_of(ready)
                    except ray.exceptions.RayError as error:
                        raise RoveError(
                            f"a part of the work was lost {MOST_LOST} times, perhaps for memory: {_first_line(error)} "
                            "Fewer --workers; what was finished is kept, and the same command goes on."
                        ) from None
                    yield task, value
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def map_in_order(self, function: Callable[[Any, Any], Any], shared: object, tasks: Iterable[Any]) -> list[Any]:
        """What `function(shared, task)` returns of each task, in their order; as many at once as there are replicas."""
        numbered = self.map(_call_numbered, enumerate(tasks), (function, shared), at_most=self.n_replicas)
        found = {number: value for (number, _), value in numbered}
        return [found[number] for number in range(len(found))]

    def replicas(self, inputs: CellInputs, examples: Path) -> RayReplicas:
        """As many replicas as were asked for; `examples` is where the run keeps its attacked items."""
        return RayReplicas(self.n_replicas, self._options, inputs, examples)


def _choose_gpus(asked: float | None, device: str) -> float:
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device got '{device}' with --executor ray, which chooses GPUs; expected cpu or cuda.")
    n_gpus = float(device == "cuda" if asked is None else asked)
    if (n_gpus > 0) != (device == "cuda"):
        raise UsageError(
            f"--gpus-per-replica got {n_gpus:g} with --device {device}; expected 0 for cpu, more for cuda."
        )
    if n_gpus > 1 and not n_gpus.is_integer():
        raise UsageError(f"--gpus-per-replica got {n_gpus:g}; expected a share of one, or a whole number.")
    return n_gpus


def _choose_replicas(asked: int | None, n_gpus: float) -> int:
    """How many there will be: those asked for, or one for each GPU or share of it, or one on each node.

    Raises:
        UsageError: the cluster has no room for them.
    """
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0))
    if n_gpus:
        on_gpus = there.get("GPU", 0) * int(1 / n_gpus + 1e-9) if n_gpus < 1 else there.get("GPU", 0) // n_gpus
        room = min(room, int(on_gpus))
    n_nodes = sum(node["Alive"] for node in ray.nodes())
    wanted = asked or (max(1, room) if n_gpus else n_nodes)
    if wanted > room:
        raise UsageError(
            f"the cluster has room for {room} replicas of 1 CPU and {n_gpus:g} GPUs each, expected {wanted}: it has "
            f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs. Fewer --replicas, or more nodes."
        )
    return wanted


class RayReplicas:
    """The replicas of a run, and which cell each of them has."""

    def __init__(self, n_replicas: int, options: Mapping[str, Any], inputs: CellInputs, examples: Path) -> None:
        self._n_replicas, self._options, self._inputs, self._examples = n_replicas, options, inputs, examples
        self._loaded: Loaded | None = None
        self._shelf: Any = None
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []
        self._held: dict[Any, set[str]] = {}
        self._made: set[str] = set()
        self._n_lost_starting = 0

    def start(self) -> Loaded:
        """What the submission is, as the first replica that is ready has loaded it; the others follow.

        Raises:
            SubmissionError: it cannot be loaded.
            InputError: a node lacks something, or is of another kind.
        """
        if self._shelf is None:
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            capacity = ray.cluster_resources().get("object_store_memory", 0) / 2
            self._shelf = ray.remote(_Shelf).options(num_cpus=0, scheduling_strategy=here).remote(capacity)
            for _ in range(self._n_replicas):
                self._add()
        while self._loaded is None:
            self._receive()
        return self._loaded

    def score(self, cells: Sequence[Cell], observer: object) -> Iterator[Score]:
        """What comes of the cells, as they are finished."""
        for _, (score, files) in self._work(cells) if cells else ():
            _write_files(self._examples, files)
            if score.record.key != self._inputs.key(score.record.cell, self._rerank_k):
                raise InputError(
                    f"{score.record.cell.id} was scored on other data than lie here at the same path; expected the "
                    "same on every node."
                )
            yield score

    def probe(self) -> tuple[Probe, ...]:
        """What the probes find."""
        [(_, probes)] = self._work([None])
        return tuple(probes)

    def close(self) -> None:
        """Ends all replicas, with what they are at."""
        stopping = [replica.stop.remote() for replica in self._held if replica not in self._starting.values()]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for actor in (*self._held, self._shelf):
            if actor is not None:
                ray.kill(actor)
        self._held.clear()
        self._shelf = None

    def _add(self) -> None:
        actor = ray.remote(_Replica).options(max_concurrency=2, **self._options)  # one for stop()
        replica = actor.remote(self._inputs, self._shelf, _own_start())
        self._held[replica] = set()
        self._starting[replica.start.remote()] = replica

    def _work(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Every task with what a replica made of it; one that is lost is given to another, a few times."""
        self.start()
        waiting, n_lost = list(tasks), Counter[Task]()
        while waiting or self._busy:
            self._hand_out(waiting)
            received = self._receive()
            if received is None:
                continue
            task, value = received
            if isinstance(value, ray.exceptions.RayError):
                n_lost[task] += 1
                if n_lost[task] < MOST_LOST:
                    waiting.insert(0, task)
                    continue
                value = self._give_up(task, value)
            yield task, value

    def _hand_out(self, waiting: list[Task]) -> None:
        """Gives each idle replica the first task for which nothing is being made yet."""
        for replica in [*self._idle]:
            being_made = {name for _, task in self._busy.values() for name in self._names(task)} - self._made
            ready = [task for task in waiting if not self._names(task) & being_made]
            if not ready:
                return
            task = ready[0]
            waiting.remove(task)
            self._idle.remove(replica)
            names = self._names(task)
            files = _read_files(self._examples, _stamps(self._examples, names - self._held[replica]))
            ref = replica.probe.remote() if task is None else replica.score.remote(task, names, files)
            self._busy[ref] = (replica, task)

    def _receive(self) -> tuple[Task, Any] | None:
        """A task that is over, with its result or the error that took its replica; None if there is none yet."""
        ready, _ = ray.wait([*self._busy, *self._starting], timeout=_REMIND_S)
        if not ready:
            if not self._busy:
                _log.warning("no replica is running yet: the cluster is busy, or still loads the submission.")
            return None
        starting = ready[0] in self._starting
        replica, task = (self._starting.pop(ready[0]), None) if starting else self._busy.pop(ready[0])
        try:
            value = _result_of(ready[0])
        except ray.exceptions.RayError as error:
            self._replace(replica, error, starting)
            return None if starting else (task, error)
        self._idle.append(replica)
        if starting:
            self._check(value)
            return None
        if task is not None and value[0].record.status == "ok":
            self._held[replica] |= self._names(task)
            self._made |= self._names(task)
        return task, value

    def _replace(self, lost: Any, error: Exception, starting: bool) -> None:
        _log.warning("a replica was lost, another takes its place: %s", _first_line(error))
        self._n_lost_starting += starting
        if self._n_lost_starting >= MOST_LOST:
            raise RoveError(
                f"{MOST_LOST} replicas were lost while they loaded the submission, perhaps for memory: "
                f"{_first_line(error)} Fewer --replicas; what was finished is kept."
            )
        del self._held[lost]
        self._shelf.release.remote(_name_of(lost))
        ray.kill(lost)
        self._add()

    def _give_up(self, task: Task, error: Exception) -> Any:
        from bench.replica import Score

        told = f"{MOST_LOST} replicas were lost, one after the other; the last: {_first_line(error)}"
        if task is None:
            raise RoveError(f"the submission was not probed: {told} The same command tries again.")
        record = self._inputs.blank(task, self._rerank_k).model_copy(update={"status": "error", "reason": told[:8000]})
        return Score(record, None), {}

    def _check(self, loaded: Loaded) -> None:
        """Refuses a replica that is not like the others."""
        self._loaded = self._loaded or loaded
        for name in ("weights_sha256", "versions", "device_name", "reranker"):
            first, found = getattr(self._loaded, name), getattr(loaded, name)
            if first != found:
                raise InputError(f"replicas differ in {name}: {first} and {found}; expected nodes of one kind.")

    def _names(self, task: Task) -> set[str]:
        return self._inputs.examples(task) if task is not None and task.is_attack else set()

    @property
    def _rerank_k(self) -> int | None:
        return self._inputs.settings.rerank_k if self.start().reranker else None


class _Start(NamedTuple):
    """What the user's command was started with: variables, None where there is none, and the folder."""

    variables: Mapping[str, str | None]
    folder: str


def _own_start() -> _Start:
    return _Start({name: os.environ.get(name) for name in _HANDED_ON}, os.getcwd())


# What follows runs on the nodes.


def _settle(started_with: _Start) -> None:
    """Takes over what the command was started with: Ray sets a number of threads where there is none."""
    for name, value in started_with.variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        os.chdir(started_with.folder)
    except OSError as error:
        raise InputError(
            f"{_node()} cannot enter {started_with.folder}, where this command was started: {error.strerror}; expected "
            "the same paths on every node."
        ) from None


def _call(started_with: _Start, held: bytes, task: bytes) -> Any:
    """To unpickle a function is to import its module, which must find the variables as they are to be."""
    _settle(started_with)
    torchvision_fix.install()
    function, shared = cloudpickle.loads(held)
    return function(shared, cloudpickle.loads(task))


def _call_numbered(held: tuple[Callable[[Any, Any], Any], object], task: tuple[int, object]) -> Any:
    function, shared = held
    return function(shared, task[1])


class _Replica:
    """A replica and its submission's processes; it is given one task at a time, and can be stopped meanwhile."""

    _examples: Path
    _replica: Replica

    def __init__(self, inputs: CellInputs, shelf: Any, started_with: _Start) -> None:
        self._inputs, self._shelf, self._started_with = inputs, shelf, started_with
        self._name = ray.get_runtime_context().get_actor_id()
        self._ends = contextlib.ExitStack()

    def start(self) -> Loaded:
        """Loads the submission, if this node is as it must be."""
        _settle(self._started_with)
        from bench.replica import Replica

        check_node(self._inputs)
        self._examples = self._ends.enter_context(Scratch("examples"))
        self._replica = self._ends.enter_context(contextlib.closing(Replica(self._inputs, self._examples, self._share)))
        return self._replica.start()

    def score(self, cell: Cell, names: set[str], files: Files) -> tuple[Score, Files]:
        """What came of a cell, and the attacked items that were made for it, of those `names`."""
        _write_files(self._examples, files)
        before = _stamps(self._examples, names)
        score = self._replica.score_cell(cell, lambda count: None)
        made = {path: stamp for path, stamp in _stamps(self._examples, names).items() if before.get(path) != stamp}
        return score, _read_files(self._examples, made)

    def probe(self) -> tuple[Probe, ...]:
        return self._replica.probe()

    def stop(self) -> None:
        """Ends the submission's processes, whatever they are at, and leaves nothing on the node but its cache."""
        self._ends.close()

    def _share(self, key: str, make: Callable[[], Embedded]) -> Embedded:
        """What lies on the shelf under `key`, or else what is made now and put there."""
        if found := ray.get(self._shelf.find.remote(key, self._name)):
            shelved = ray.get(found[0])
            return replace(shelved, vectors=shelved.vectors.copy(), cached=True)  # the store's memory is read-only
        try:
            made = make()
        except BaseException:
            ray.get(self._shelf.release.remote(self._name))
            raise
        ray.get(self._shelf.keep.remote(key, made))
        return made


class _Shelf:
    """Embeddings by their keys, in the object store; the least recently used make room for others."""

    def __init__(self, capacity_bytes: float) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: dict[str, tuple[Any, int]] = {}
        self._makers: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def find(self, key: str, maker: str) -> list[Any] | None:
        """Where the embeddings lie, waited for while another makes them; None if `maker` is to make them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._makers.get(key, maker) == maker)
            if key in self._kept:
                self._kept[key] = self._kept.pop(key)
                return [self._kept[key][0]]
            self._makers[key] = maker
            return None

    async def keep(self, key: str, embedded: Embedded) -> None:
        async with self._changed:
            # Put here, they outlive the replica that made them.
            self._kept[key] = ray.put(embedded), embedded.vectors.nbytes
            while sum(size for _, size in self._kept.values()) > self._capacity_bytes:
                del self._kept[next(iter(self._kept))]
            self._makers.pop(key, None)
            self._changed.notify_all()

    async def release(self, maker: str) -> None:
        """Lets others make what `maker` will not finish."""
        async with self._changed:
            self._makers = {key: name for key, name in self._makers.items() if name != maker}
            self._changed.notify_all()


def check_node(inputs: CellInputs) -> None:
    """Refuses a node on which other records would come out.

    Raises:
        InputError: it has another submission, processor or version.
    """
    from bench.environment import check_surroundings, describe_environment, surroundings_of
    from bench.submission import take_fingerprint

    submission = inputs.submission
    if not submission.module.is_file() or take_fingerprint(submission) != submission.fingerprint:
        raise InputError(f"{_node()} has another submission at {submission.folder}; expected the same on every node.")
    here = describe_environment(inputs.settings.worker.device, submission.manifest.requires)
    check_surroundings(surroundings_of(here), inputs.surroundings)


def _node() -> str:
    return f"node {os.uname().nodename}"


def _name_of(actor: Any) -> str:
    return str(actor._actor_id.hex())


def _result_of(reference: Any) -> Any:
    """The value of a finished task; what it raised is raised here as if it had been called."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The files of these examples, relative to `folder`, with what changes when one is written again."""
    found = {}
    for name in sorted(names):
        place = folder / name
        for path in (place, *place.glob("*")):
            if path.is_file() and not path.name.startswith("."):
                facts = path.stat()
                found[str(path.relative_to(folder))] = (facts.st_mtime_ns, facts.st_size)
    return found


def _read_files(folder: Path, paths: Iterable[str]) -> Files:
    return {path: (folder / path).read_bytes() for path in paths}


def _write_files(folder: Path, files: Files) -> None:
    """Writes examples so that at any moment those there are whole: the key, then images, then what vouches for them."""
    for path in sorted(files, key=lambda path: (Path(path).name != "key", path)):
        if Path(path).name == "key":
            claim_examples(folder / Path(path).parent, files[path].decode())
        else:
            write_atomic(folder / path, files[path])
