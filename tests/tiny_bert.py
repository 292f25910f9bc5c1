"""A tiny BERT with random weights, saved in the format of the hub's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_bert(folder: Path, pieces: Sequence[str], max_tokens: int) -> Path:
    """`folder`, with a model whose vocabulary is `pieces` and which reads up to `max_tokens` of them."""
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(
        vocab_size=len(pieces), max_position_embeddings=max_tokens, initializer_range=1.0, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder
