"""Language models of the Hugging Face hub that text shifts ask: pinned, loaded once, read in double precision."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.errors import MissingError

Kind = Literal["masked_lm", "translation"]


class HubModel(NamedTuple):
    """A model at a fixed commit; `name` may be a local folder instead."""

    kind: Kind
    name: str
    revision: str


class _Place(NamedTuple):
    """The folder of a model, or why there is none."""

    folder: str = ""
    problem: str = ""


class Loaded(NamedTuple):
    """A tokenizer and a network of `transformers`."""

    tokenizer: Any
    net: Any


_CLASSES = {
    "masked_lm": ("BertTokenizerFast", "BertForMaskedLM"),
    "translation": ("MarianTokenizer", "MarianMTModel"),
}
_FILES = {
    "masked_lm": ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"],
    "translation": ["*config.json", "vocab.json", "*.spm", "pytorch_model.bin"],
}


def load(*models: HubModel) -> tuple[Loaded, ...]:
    """The models from the hub's cache, else from the hub; later calls give the same objects.

    They run in float64: with float32 the order of sums, which depends on the number of threads and on the CPU, now and
    then decides between two words. That costs twice the time.

    Raises:
        MissingError: one is neither in the cache nor to be had; the message names all and says how to fetch them.
    """
    problem = find_missing(models)
    if problem:
        raise MissingError(problem)
    try:
        return tuple(_open(model, _locate(model, _is_offline()).folder) for model in models)
    except (OSError, ValueError) as error:
        raise MissingError(_explain(models, _first_line(error))) from error


def find_missing(models: Iterable[HubModel]) -> str:
    """Why the models cannot be used, or "" if they can: what is not in the cache is fetched, where there is a hub."""
    wanted = tuple(models)
    if any(model.kind == "translation" for model in wanted) and importlib.util.find_spec("sentencepiece") is None:
        return "Marian models need sentencepiece. Run `pip install 'rove-bench[translate]'`."
    problem = next(
        (place.problem for place in (_locate(model, _is_offline()) for model in wanted) if place.problem), ""
    )
    return problem and _explain(wanted, problem)


def find_local(model: HubModel) -> str:
    """The folder of a model that is on this machine, or "" if a file of it is not; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model.name).is_dir():
        return model.name
    names = [name for name in _FILES[model.kind] if "*" not in name]
    paths = [try_to_load_from_cache(model.name, name, revision=model.revision) for name in names]
    folders = [str(Path(path).parent) for path in paths if isinstance(path, str)]
    return folders[0] if len(folders) == len(names) else ""


@cache
def _locate(model: HubModel, offline: bool) -> _Place:
    """Where the model lies; a hub that gave no answer is not asked again by this process."""
    from huggingface_hub import snapshot_download

    folder = find_local(model)
    if folder:
        return _Place(folder)
    if offline:
        return _Place(problem="HF_HUB_OFFLINE is set and they are not in the cache")
    try:
        return _Place(snapshot_download(model.name, revision=model.revision, allow_patterns=_FILES[model.kind]))
    except (OSError, ValueError) as error:
        return _Place(problem=_first_line(error))


@cache
def _open(model: HubModel, folder: str) -> Loaded:
    import transformers

    tokenizer_class, net_class = _CLASSES[model.kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses")
        tokenizer = getattr(transformers, tokenizer_class).from_pretrained(folder)
        net = getattr(transformers, net_class).from_pretrained(folder)
    return Loaded(tokenizer, net.double().eval())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _is_offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def _explain(models: Iterable[HubModel], reason: str) -> str:
    wanted = tuple(models)
    names = " and ".join(model.name for model in wanted)
    commands = " and ".join(f"`hf download {model.name} --revision {model.revision}`" for model in wanted)
    return f"The shift needs {names} of the Hugging Face hub, which cannot be loaded: {reason}. Run {commands}."
