"""Joint attacks on a small random network: budgets, steps against one whole-graph gradient, and who beats whom."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from shifts.attacks import joint
from shifts.attacks.joint import co_attack, separate, sga, sga_image
from shifts.attacks.words import replace_words

EPS = 2 / 255
DIM = 16
TEXTS = (
    "A brown dog, running on the beach.",
    "Two young girls play soccer in a green field",
    "People stand near a tall black building",
    "a large dog on the sand",
    "The of and",
    "Boats (small) float",
)
OWNERS = np.array([0, 1, 2, 0, 1, 2])
ATTACKS = (separate, co_attack, sga)


class Toy:
    """A random convolutional net and a bag of words that goes with it; embeddings of any norm."""

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.scale = scale
        self.net = nn.Sequential(
            nn.Conv2d(3, 12, 5, stride=2), nn.GELU(), nn.Conv2d(12, 24, 3, stride=2), nn.GELU(), nn.Flatten()
        )
        self.net.append(nn.Linear(24 * 6 * 6, DIM))
        for parameter in self.net.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)
        self.net.double()
        with torch.no_grad():
            images = functional.normalize(self.embed_pixels(some_images()))
        owned = zip(TEXTS, OWNERS.tolist(), strict=True)
        self.meanings = {word: images[i] for text, i in owned for word in words_of(text)}

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        assert pixels.shape == (3, 3, 30, 30)
        return self.scale * self.net(pixels.double() - 0.5)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        assert all(isinstance(text, str) for text in texts)
        return self.scale * torch.stack([sum(map(self.encode_word, words_of(text)), torch.ones(DIM)) for text in texts])

    def encode_word(self, word: str) -> Tensor:
        """Random, but the words of the captions point towards the image that they describe."""
        random = np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIM)
        return torch.from_numpy(random) + 3 * self.meanings.get(word, 0.0)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(5))


def some_images() -> Tensor:
    coarse = torch.rand((3, 3, 5, 5), generator=torch.Generator().manual_seed(2))
    return (functional.interpolate(coarse, (30, 30), mode="bilinear").clamp(0, 1) * 255).round() / 255


def cosines(images: Tensor, texts: Sequence[str]) -> Tensor:
    victim = Toy()
    with torch.no_grad():
        return torch.cosine_similarity(victim.embed_pixels(images)[OWNERS], victim.encode_texts(texts))


def labelled(pixels: Tensor) -> Tensor:
    """Logits of three rows, each another linear map."""
    weights = torch.randn((3, 4, pixels[0].numel()), generator=torch.Generator().manual_seed(3)).double()
    return (weights @ (pixels.double().flatten(1)[:, :, None] ** 2)).squeeze(2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_budgets_are_kept_and_only_the_rng_decides(attack: Callable[..., tuple[Tensor, list[str]]]) -> None:
    victim, images = Toy(), some_images()
    before, state, numpy_state = images.clone(), torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    changed, texts = attack(victim, images, TEXTS, OWNERS, EPS, 3, rng())
    again = attack(victim, images, TEXTS, OWNERS, EPS, 3, rng())
    torch.manual_seed(7)
    assert torch.equal(changed, again[0])
    assert texts == again[1]
    assert torch.equal(images, before)
    assert changed.dtype == torch.float32
    assert (changed - images).abs().max() <= EPS + 1e-7
    assert 0 <= changed.min() <= changed.max() <= 1
    for old, new in zip(TEXTS, texts, strict=True):
        assert sum(a != b for a, b in zip(old.split(), new.split(), strict=True)) <= 1
    assert texts[4] == TEXTS[4]
    assert all(parameter.grad is None for parameter in victim.net.parameters())
    torch.random.set_rng_state(state)
    changed, _ = attack(victim, images, TEXTS, OWNERS, EPS, 3, np.random.default_rng(6))
    assert not torch.equal(changed, again[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("attack", ATTACKS)
def test_embeddings_may_have_any_norm(attack: Callable[..., tuple[Tensor, list[str]]]) -> None:
    one, ten = (attack(Toy(scale), some_images(), TEXTS, OWNERS, EPS, 3, rng()) for scale in (1.0, 10.0))
    assert one[1] == ten[1]
    assert (one[0] == ten[0]).float().mean() > 0.999


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_an_images_own_captions_move_it(attack: Callable[..., tuple[Tensor, list[str]]]) -> None:
    others = ["A red car", "something else entirely", TEXTS[2], "my old house", "green trees", TEXTS[5]]
    first, second = (attack(Toy(), some_images(), texts, OWNERS, EPS, 3, rng()) for texts in (TEXTS, others))
    assert (first[0][2] == second[0][2]).float().mean() > 0.999
    assert first[1][2] == second[1][2]
    alone = attack is separate
    assert ((first[0][0] == second[0][0]).float().mean() > 0.999) == alone


def mean_cosine(attack: Callable[..., tuple[Tensor, list[str]]]) -> float:
    return cosines(*attack(Toy(), some_images(), TEXTS, OWNERS, EPS, 10, rng())).mean().item()


def test_teamwork_parts_the_pairs_further_in_the_published_order() -> None:
    apart, co, guided = map(mean_cosine, ATTACKS)
    clean = cosines(some_images(), TEXTS).mean().item()
    assert guided < co < apart < clean - 0.05


def test_co_attack_gains_from_looking_at_the_changed_words(monkeypatch: pytest.MonkeyPatch) -> None:
    together = mean_cosine(co_attack)
    monkeypatch.setattr(joint, "CHANGED_WORDS_WEIGHT", 0.0)
    assert together < mean_cosine(co_attack) - 0.01


def test_sga_gains_from_looking_at_the_other_side_again() -> None:
    victim, images = Toy(), some_images()
    changed, last = sga(victim, images, TEXTS, OWNERS, 16 / 255, 10, rng())
    first = joint._part(victim, TEXTS, joint._embed(victim, images)[OWNERS])
    assert cosines(changed, last).mean() < cosines(changed, first).mean()


def scaled_copies(leaf: Tensor, generator: torch.Generator) -> list[Tensor]:
    """By torchvision, as SGA's code makes them."""
    copies = []
    for side in (15, 22, 37, 45):
        noisy = leaf + 0.05 * torch.randn(leaf.shape, generator=generator)
        bicubic = InterpolationMode.BICUBIC
        copies.append(
            resize(
                resize(noisy, [side, side], bicubic, antialias=False).clamp(0, 1), [30, 30], bicubic, antialias=False
            )
        )
    return copies


def test_a_step_of_sga_is_the_sign_of_the_whole_sums_gradient() -> None:
    images = some_images()
    generator = torch.Generator().manual_seed(int(rng().integers(2**63)))
    start = (images + EPS * (2 * torch.rand(images.shape, generator=generator) - 1)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    total = sum(
        functional.cross_entropy(labelled(view), torch.zeros(3, dtype=torch.long), reduction="sum")
        for view in [leaf, *scaled_copies(leaf, generator)]
    )
    total.backward()
    expected = (start + EPS / 4 * leaf.grad.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    found = sga_image(labelled, images, EPS, 1, rng())
    assert (found - expected).abs().max() < 1e-6


def test_a_step_of_co_attack_leaves_the_clean_image_and_the_changed_words() -> None:
    images, victim = some_images(), Toy()

    def unit(vectors: Tensor) -> Tensor:
        return vectors / vectors.norm(dim=1, keepdim=True)

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        p, q = p.softmax(-1), q.softmax(-1)
        return (p * (p / q).log()).sum(-1)

    clean = unit(victim.encode_texts(TEXTS))
    words = replace_words(lambda some, rows: divergence(clean[rows], unit(victim.encode_texts(some))).numpy(), TEXTS, 1)
    changed = unit(victim.encode_texts(words))
    generator = torch.Generator().manual_seed(int(rng().integers(2**63)))
    start = (images + EPS * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    vectors = unit(victim.embed_pixels(leaf))
    loss = divergence(unit(victim.embed_pixels(images)).detach(), vectors).sum()
    for i in range(3):
        loss = loss + 3.0 * sum(divergence(changed[j], vectors[i]) for j in (i, i + 3)) / 2
    loss.backward()
    expected = (start + 1.25 * EPS * leaf.grad.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    found, found_words = co_attack(victim, images, TEXTS, OWNERS, EPS, 1, rng())
    assert found_words == words
    assert ((found - expected).abs() < 1e-6).float().mean() > 0.999


def test_sga_image_raises_the_loss_within_the_budget() -> None:
    images = some_images()

    def loss(pixels: Tensor) -> float:
        return functional.cross_entropy(labelled(pixels), torch.zeros(3, dtype=torch.long)).item()

    by_steps = [loss(sga_image(labelled, images, EPS, steps, rng())) for steps in (0, 1, 4, 10)]
    assert by_steps == sorted(by_steps)
    assert by_steps[-1] > loss(images)
    assert (sga_image(labelled, images, EPS, 10, rng()) - images).abs().max() <= EPS + 1e-7


def test_an_image_without_captions_stays_within_the_budget() -> None:
    changed, _ = sga(Toy(), some_images(), TEXTS[:2], np.array([0, 2]), EPS, 2, rng())
    assert torch.isfinite(changed).all()
    assert (changed - some_images()).abs().max() <= EPS + 1e-7
