"""The submission's side of the process boundary: `python -m bench.worker.child` loads it and answers requests."""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image

from bench import torchvision_fix
from bench.errors import RoveError
from bench.types import Differentiable, DifferentiableReranker, Encoder, LoadContext, Reranker, Shared
from bench.worker.autograd import HeldGraph, autograd_runs
from bench.worker.flops import count_flops
from bench.worker.wire import Channel, MemoryFile

_PR_SET_PDEATHSIG = 1
SPARE_S = 60
_TENSOR_FUNCTIONS = ("pixels", "embed_pixels", "score_pixels", "pull_back")


class Refused(Exception):
    """The submission does not keep to its interface; the message says where."""


def serve(channel: Channel, inbox: MemoryFile, outbox: MemoryFile) -> None:
    """Answers requests until the harness says goodbye or closes the channel."""
    session = _Session(inbox, outbox)
    while (request := channel.receive()) is not None and request["op"] != "bye":
        try:
            answer = {"ok": True, **session.answer(request)}
        except Refused as error:
            answer = {"ok": False, "status": "protocol", "error": str(error), "traceback": ""}
        except RoveError as error:
            answer = {"ok": False, "status": "error", "error": str(error), "traceback": ""}
        except Exception as error:
            status = "oom" if _is_out_of_memory(error) else "error"
            text = f"{type(error).__name__}: {error}"
            answer = {"ok": False, "status": status, "error": text, "traceback": traceback.format_exc(limit=-8)}
        channel.send(answer)
    if request is not None:
        channel.send({"ok": True, "bye": True})


class _Session:
    """One loaded submission."""

    def __init__(self, inbox: MemoryFile, outbox: MemoryFile) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._encoder: Any = None
        self._graph = HeldGraph("cpu")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        _limit_processor_time(request["timeout_s"])
        if request["op"] == "load":
            return self._load(request)
        if request["op"] == "pull_back":
            return self._pull_back(request)
        if request["op"] == "count_flops":
            return {"flops": count_flops(lambda: self._compute({**request, "op": request["of"]}))}
        before = autograd_runs()
        output = self._compute(request)
        return {**self._send(output, request["op"]), "autograd_calls": max(0, autograd_runs() - before)}

    def _compute(self, request: dict[str, Any]) -> Any:
        operation = request["op"]
        if operation in ("encode_images", "pixels", "image_tokens"):
            return getattr(self._encoder, operation)(self._images(request["sizes"]))
        if operation == "encode_texts":
            return self._encoder.encode_texts(self._texts(request))
        if operation == "score_pairs":
            return self._encoder.score_pairs(self._array(request), self._texts(request))
        if operation == "embed_pixels":
            return self._graph.run(self._encoder.embed_pixels, self._array(request), request["grad"])
        texts = self._texts(request)
        return self._graph.run(
            lambda pixels: self._encoder.score_pixels(pixels, texts), self._array(request), request["grad"]
        )

    def _pull_back(self, request: dict[str, Any]) -> dict[str, Any]:
        gradient, attached = self._graph.pull_back(self._array(request))
        return {**self._send(gradient, "pull_back"), "attached": attached}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        context = LoadContext(
            folder=Path(request["folder"]),
            device=request["device"],
            dtype=request["dtype"],
            args=request["args"],
            offline=request["offline"],
        )
        with _no_search_for_garbage():
            load = _load_function(request["import_name"], Path(request["module"]), request["function"])
            self._encoder = load(context)
        if not isinstance(self._encoder, Encoder):
            raise Refused("load(context) returned no encoder; expected encode_images(images) and encode_texts(texts).")
        self._graph = HeldGraph(context.device)
        modules = _torch_modules(self._encoder)
        return {
            **_abilities(self._encoder),
            "weights_sha256": _weights_digest(modules),
            "parameters": sum(parameter.numel() for parameter in _parameters(modules)) if modules else None,
            "versions": _versions(request["requires"]),
            "device_name": _device_name(context.device),
            "tower_ids": dict(self._encoder.tower_ids()) if isinstance(self._encoder, Shared) else {},
        }

    def _images(self, sizes: Sequence[tuple[int, int]]) -> list[PIL.Image.Image]:
        images, start = [], 0
        for width, height in sizes:
            raw = self._inbox.read(width * height * 3, start)
            images.append(PIL.Image.frombytes("RGB", (width, height), raw.data))
            start += raw.size
        return images

    def _array(self, request: dict[str, Any]) -> np.ndarray:
        """The array that stands first in the inbox."""
        dtype, shape = np.dtype(request["dtype"]), request["shape"]
        return self._inbox.read(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    def _texts(self, request: dict[str, Any]) -> list[str]:
        """The texts that stand last in the inbox."""
        return json.loads(self._inbox.read(request["n_bytes"], request["start"]).tobytes())

    def _send(self, output: Any, function: str) -> dict[str, Any]:
        array = _host_array(output, function) if function in _TENSOR_FUNCTIONS else output
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise Refused(f"{function} returned {_kind(output)}; expected a NumPy array of float32.")
        self._outbox.write([array])
        return {"shape": list(array.shape), "dtype": array.dtype.str}


def _host_array(output: Any, function: str) -> np.ndarray:
    import torch

    if not isinstance(output, torch.Tensor) or output.dtype != torch.float32:
        raise Refused(f"{function} returned {_kind(output)}; expected a torch tensor of float32.")
    return output.detach().cpu().numpy()


def _abilities(encoder: object) -> dict[str, bool]:
    differentiable, reranker = isinstance(encoder, Differentiable), isinstance(encoder, Reranker)
    return {
        "differentiable": differentiable,
        "reranker": reranker,
        "differentiable_reranker": differentiable and reranker and isinstance(encoder, DifferentiableReranker),
    }


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Modules are a million objects and no garbage: looking for it takes a quarter of the import, and more at exit."""
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def _load_function(import_name: str, module: Path, function: str) -> Any:
    loaded = importlib.import_module(import_name) if import_name else _load_file(module)
    if not callable(getattr(loaded, function, None)):
        raise Refused(f"{module.name} defines no {function}(context).")
    return getattr(loaded, function)


def _load_file(module: Path) -> ModuleType:
    """The module in a file, whose neighbours it may import."""
    sys.path.insert(0, str(module.parent))
    spec = importlib.util.spec_from_file_location(f"rove_submission_{module.stem}", module)
    if spec is None or spec.loader is None:
        raise Refused(f"{module} is no Python file.")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _torch_modules(encoder: object) -> list[Any]:
    """The torch modules that the encoder is or holds as attributes, in order of their names."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    held = [encoder, *(value for _, value in inspect.getmembers_static(encoder))]
    return [value for value in held if isinstance(value, torch.nn.Module)]


def _parameters(modules: Iterable[Any]) -> list[Any]:
    unique = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return list(unique.values())


def _weights_digest(modules: Sequence[Any]) -> str:
    """Hex sha256 of all parameters and buffers, by name: which weights were really loaded; "" if none were found."""
    digest = hashlib.sha256()
    if not modules:
        return ""
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8).numpy().data)
    return digest.hexdigest()


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    versions = {"numpy": np.__version__, "pillow": PIL.__version__}
    if "torch" in sys.modules:
        versions["torch"] = str(sys.modules["torch"].__version__)
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise Refused(f"the submission requires the package {name}, which is not installed.") from None
    return versions


def _device_name(device: str) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return device


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return f"a torch tensor of {value.dtype}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it says so; torch has no class of its own for memory of the CPU."""
    names = ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
    return type(error).__name__ in names or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _limit_processor_time(seconds: float) -> None:
    """This process may compute on all cores for so long, should nobody be there to watch the clock."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = used.ru_utime + used.ru_stime + (os.cpu_count() or 1) * seconds + SPARE_S
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(most) if hard == resource.RLIM_INFINITY else min(math.ceil(most), hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _die_with_the_guard() -> None:
    """On Linux the kernel kills this process when the one that started it ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point of the worker process: descriptors come by number, everything else by message."""
    parser = argparse.ArgumentParser()
    for name in ("control", "inbox", "outbox"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    _die_with_the_guard()
    torchvision_fix.install()
    with socket.socket(fileno=options.control) as stream:
        serve(Channel(stream), MemoryFile(options.inbox), MemoryFile(options.outbox))


if __name__ == "__main__":
    main()
