"""Cache models: the vectors of a few training items stay in memory as keys and correct those of every new item.

Two forms. A `ClassCache` knows classes by their prompts and a few images of each, and adds to an image's zero-shot
logits what its nearest keys say; the logits are written as cosines, so that it stays a dual encoder. A `PairCache`
knows pairs of image and caption, and moves the vector of an image towards the captions of the images that are like it,
and that of a text towards the images of the captions that are like it. Both are functions of the base's vectors alone.

Source: Tip-Adapter, arXiv:2111.03930, section 3.1; XMAdapter, arXiv:2404.12588, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import UsageError
from submissions.backbones.backbone import Backbone, Changed, add_part, dim_of
from submissions.backbones.fitted import Stored
from submissions.backbones.plan import parse_count, parse_number

CACHE_ARGS = {"shots": "16", "cache": "1024", "alpha": "search", "beta": "search", "tau": "search"}
FUSION_ARGS = {"gamma": "learned", "hard": "yes"}
SEARCHED, LEARNED = "search", "learned"
CLASSES, PAIRS = "classes", "pairs"
FIRST = {"alpha": 1.0, "beta": 1.0, "tau": 0.05}  # until they are searched
WIDEST = 256
MARGIN = 1.001
PART = "cache"


class Fusion(nn.Module):
    """Affinities to images and to texts made one: gamma A_image + (1 - gamma) A_text.

    MetaNet and Img2TxtNet map texts' and images' vectors to one space in which their cosine is the affinity. The paper
    gives neither sizes nor first values: here both are linear and begin as one orthogonal matrix, so that the cosine
    is at first that of the base, exactly where `dim` is at most 256 and nearly elsewhere; gamma begins at 0.5
    [inferred].

    Args:
        dim: of the base's vectors.
        gamma: weight of the images' part, 0 to 1; None lets it learn.

    Source: arXiv:2404.12588, section 3.2.
    """

    def __init__(self, dim: int, gamma: float | None) -> None:
        super().__init__()
        width = min(dim, WIDEST)
        self.meta = nn.Linear(dim, width, bias=False)
        self.image_to_text = nn.Linear(dim, width, bias=False)
        nn.init.orthogonal_(self.meta.weight)
        with torch.no_grad():
            self.image_to_text.weight.copy_(self.meta.weight)
        self.gamma_logit = nn.Parameter(torch.zeros(())) if gamma is None else None
        self._fixed = torch.tensor(gamma or 0.0, dtype=torch.float64)  # a scalar: what it multiplies keeps its type

    @property
    def gamma(self) -> Float[Tensor, ""]:
        """The weight of the affinity to images."""
        return self._fixed if self.gamma_logit is None else torch.sigmoid(self.gamma_logit)

    def affinity(self, images: Float[Tensor, "n dim"], texts: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """Of images (rows) and texts (columns), across the modalities, -1 to 1."""
        return functional.normalize(self.image_to_text(images)) @ functional.normalize(self.meta(texts)).T

    def mix(self, to_images: Tensor, to_texts: Tensor) -> Tensor:
        """Both affinities in one."""
        return self.gamma * to_images + (1 - self.gamma) * to_texts


class ClassCache(Stored):
    """A cache of as many images of each class; every class has one prompt.

    The values of the published cache are one-hot rows; here entries lie class by class, as many of each, so that the
    product with them is a sum over a class's entries and nothing is stored for it. The zero-shot logits have the base's
    own factor on cosines, as CLIP's is the 100 of the released code [inferred].

    Args:
        n_classes: prompts.
        shots: entries of each class.
        dim: of the base's vectors.
        scale: the base's factor on cosines.
        learns: whether the keys do, and the fusion.
        fusion: None is an image cache alone, Tip-Adapter.

    Attributes:
        alpha: weight of the cache.
        beta: how fast an entry's say falls with its distance.

    Source: arXiv:2111.03930, section 3.1; `utils.py` and `main.py` of github.com/gaopengcuhk/Tip-Adapter.
    """

    def __init__(
        self, n_classes: int, shots: int, dim: int, scale: float, learns: bool, fusion: Fusion | None = None
    ) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(n_classes, shots, dim), requires_grad=learns)
        self.prompts = nn.Parameter(torch.zeros(n_classes, dim), requires_grad=False)
        self.scale, self.alpha, self.beta, self.fusion = scale, FIRST["alpha"], FIRST["beta"], fusion

    def affinity(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_classes shots"]:
        """Of images, normalised, and all entries."""
        to_images = self._to_images(images)
        return to_images if self.fusion is None else self.fusion.mix(to_images, self._to_texts(self.fusion, images))

    def disagreement(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Mean |A_image - A_text| over the entries; needs a fusion."""
        if self.fusion is None:
            raise TypeError("a cache of images alone has one affinity.")
        return (self._to_images(images) - self._to_texts(self.fusion, images)).abs().mean(dim=(1, 2))

    def evidence(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_classes"]:
        """exp(-beta (1 - affinity)), summed over each class's entries."""
        return torch.exp(self.beta * (self.affinity(images) - 1)).sum(dim=2)

    def logits(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_classes"]:
        """Zero-shot logits and the cache's, of normalised vectors."""
        return self.scale * images @ self.prompts.T + self.alpha * self.evidence(images)

    def of_images(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim_with_classes"]:
        """[scale f, alpha evidence, pad]: with a text's vector, the cosine is the logit times a constant.

        The padding makes all norms one bound that no image can exceed, so that normalising changes no order, neither
        of the texts for an image nor of the images for a text. Between images, the squared distance is that of the
        parts before the padding and of the padding.

        Source: arXiv:1410.5518, section 4, where items are so padded for search by inner product.
        """
        unit = functional.normalize(vectors)
        evidence = self.alpha * self.evidence(unit)
        room = (self._largest_evidence().square().sum() - evidence.square().sum(dim=1)).clamp(min=0)
        return torch.cat([self.scale * unit, evidence, (room + self.scale**2).sqrt()[:, None]], dim=1)

    def of_texts(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim_with_classes"]:
        """[w, one-hot, 0]: the text's own vector, and the class whose prompt is nearest to it, as a typo changes it."""
        unit = functional.normalize(vectors)
        nearest = functional.one_hot((unit @ self.prompts.T).argmax(dim=1), len(self.prompts))
        return torch.cat([unit, nearest.to(unit.dtype), unit.new_zeros(len(unit), 1)], dim=1)

    def _to_images(self, images: Tensor) -> Tensor:
        return (images @ self.keys.flatten(0, 1).T).view(len(images), *self.keys.shape[:2])

    def _to_texts(self, fusion: Fusion, images: Tensor) -> Tensor:
        """To each entry's text key, which is its class's, row of L MetaNet(prompts)."""
        return fusion.affinity(images, self.prompts)[:, :, None]

    def _largest_evidence(self) -> Float[Tensor, " n_classes"]:
        """What no image's alpha x evidence can exceed; keys that learnt may be longer than 1."""
        reach = self.keys.norm(dim=2)
        if self.fusion is not None:
            reach = self.fusion.mix(reach, torch.ones_like(reach))
        return MARGIN * self.alpha * torch.exp(self.beta * (reach - 1)).sum(dim=1)


class PairCache(Stored):
    """A cache of training pairs: f' = norm(f + alpha softmax(A / tau) texts), and the same of texts with images.

    A retrieval form of a cache of classes, whose values are the other modality's vectors in place of one-hot labels
    [inferred]. Keys are the pairs' own vectors until they learn; the values stay. With a fusion, the affinity of an
    item to a pair is gamma times that within its modality and 1 - gamma times that across [inferred].

    Args:
        n_pairs: entries.
        dim: of the base's vectors.
        learns: whether the keys do, and the fusion.
        fusion: None takes affinities within a modality alone.

    Attributes:
        alpha: how far vectors are moved.
        tau: of the softmax.
    """

    def __init__(self, n_pairs: int, dim: int, learns: bool, fusion: Fusion | None = None) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.zeros(n_pairs, dim), requires_grad=False)
        self.texts = nn.Parameter(torch.zeros(n_pairs, dim), requires_grad=False)
        self.image_keys = nn.Parameter(torch.zeros(n_pairs, dim)) if learns else self.images
        self.text_keys = nn.Parameter(torch.zeros(n_pairs, dim)) if learns else self.texts
        self.alpha, self.tau, self.fusion = FIRST["alpha"], FIRST["tau"], fusion

    def image_affinity(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_pairs"]:
        """Of images, normalised, and the pairs."""
        within = images @ self.image_keys.T
        return within if self.fusion is None else self.fusion.mix(within, self.fusion.affinity(images, self.text_keys))

    def text_affinity(self, texts: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_pairs"]:
        """Of texts, normalised, and the pairs."""
        within = texts @ self.text_keys.T
        return within if self.fusion is None else self.fusion.mix(within, self._across(self.fusion, texts))

    def disagreement(
        self,
        images: Float[Tensor, "n dim"],
        texts: Float[Tensor, "n dim"],
        own: Bool[Tensor, "n n_pairs"],
    ) -> Float[Tensor, " n"]:
        """|affinity within - affinity across|, mean over both sides of each pair and all entries but its own."""
        if self.fusion is None:
            raise TypeError("a cache without a fusion has one affinity.")
        of_images = images @ self.image_keys.T - self.fusion.affinity(images, self.text_keys)
        of_texts = texts @ self.text_keys.T - self._across(self.fusion, texts)
        gaps = (of_images.abs() + of_texts.abs()) / 2
        return gaps.masked_fill(own, 0).sum(dim=1) / (~own).sum(dim=1)

    def of_images(
        self, vectors: Float[Tensor, "n dim"], own: Bool[Tensor, "n n_pairs"] | None = None
    ) -> Float[Tensor, "n dim"]:
        """Images' vectors, moved towards texts; entries of `own` are left out."""
        unit = functional.normalize(vectors)
        return self._move(unit, self.image_affinity(unit), self.texts, own)

    def of_texts(
        self, vectors: Float[Tensor, "n dim"], own: Bool[Tensor, "n n_pairs"] | None = None
    ) -> Float[Tensor, "n dim"]:
        """Texts' vectors, moved towards images; entries of `own` are left out."""
        unit = functional.normalize(vectors)
        return self._move(unit, self.text_affinity(unit), self.images, own)

    def _across(self, fusion: Fusion, texts: Tensor) -> Tensor:
        return fusion.affinity(self.image_keys, texts).T

    def _move(self, unit: Tensor, affinity: Tensor, values: Tensor, own: Tensor | None) -> Tensor:
        if own is not None:
            affinity = affinity.masked_fill(own, -torch.inf)
        shares = functional.softmax(affinity / self.tau, dim=1)
        return functional.normalize(unit + self.alpha * shares @ values)


class Cached(Changed):
    """Implements `Encoder` and `Differentiable` by what a cache makes of the base's vectors.

    Args:
        base: computes them; its module is given the cache as a part.
        cache: of either form.
    """

    def __init__(self, base: Backbone, cache: ClassCache | PairCache) -> None:
        images: Callable[..., Tensor] = partial(_correct, base.embed_pixels, cache.of_images)
        texts: Callable[..., Tensor] = partial(_correct, base.embed_texts, cache.of_texts)
        super().__init__(base, base.module, images, texts)
        self.cache = cache
        add_part(base, cache, PART)


def attach_cache(base: Backbone, args: Mapping[str, str], learns: bool, fused: bool = False) -> Cached:
    """The base with a cache of the size that `args` state, to be filled.

    Args:
        base: is frozen.
        args: `form`, and for classes `n_classes` and `shots`, for pairs `n_pairs`; alpha, beta and tau; with a fusion
            gamma.
        learns: whether keys and fusion do.
        fused: whether there is a fusion.

    Raises:
        UsageError: an argument is not as it must be.
    """
    base.module.requires_grad_(False)
    dim = dim_of(base)
    fusion = Fusion(dim, parse_gamma(args["gamma"])) if fused else None
    cache: ClassCache | PairCache
    if args["form"] == CLASSES:
        n_classes, shots = (parse_count(name, args[name]) for name in ("n_classes", "shots"))
        cache = ClassCache(n_classes, shots, dim, float(base.log_scale.exp()), learns, fusion)
    else:
        cache = PairCache(parse_count("n_pairs", args["n_pairs"]), dim, learns, fusion)
    set_knobs(cache, args)
    return Cached(base, cache.to(base.device))


def set_knobs(cache: ClassCache | PairCache, args: Mapping[str, str]) -> None:
    """Gives the cache its alpha and its beta or tau, where `args` has numbers for them.

    Raises:
        UsageError: one is no number of at least 0, or tau is 0.
    """
    for name in knobs_of(cache):
        if args[name] != SEARCHED:
            setattr(cache, name, parse_knob(name, args[name]))


def knobs_of(cache: ClassCache | PairCache) -> tuple[str, str]:
    """Names of the two numbers that are searched."""
    return ("alpha", "beta") if isinstance(cache, ClassCache) else ("alpha", "tau")


def parse_knob(name: str, text: str) -> float:
    """One of `knobs_of`.

    Raises:
        UsageError: it is no number of at least 0, or tau is 0.
    """
    value: float = parse_number(name, text, float)
    if name == "tau" and not value:
        raise UsageError("--recipe-arg tau is '0'; expected more, because it divides the affinities.")
    return value


def parse_gamma(text: str) -> float | None:
    """The weight of images among affinities; None where it learns.

    Raises:
        UsageError: it is neither a number from 0 to 1 nor "learned".
    """
    if text == LEARNED:
        return None
    value: Any = parse_number("gamma", text, float)
    if value > 1:
        raise UsageError(f"--recipe-arg gamma is '{text}'; expected 0 to 1, or {LEARNED}.")
    return float(value)


def _correct(embed: Callable[[Any], Tensor], change: Callable[[Tensor], Tensor], items: Any) -> Tensor:
    return change(embed(items))
