"""Attacks on images within an L-infinity budget, as the torchattacks package makes them.

Each takes `logits`, which says for a batch of pixels how well every item is still found (column 0) and how well
something else is (the other columns), and raises the cross-entropy of label 0 of every item. It is always called with
the whole batch in its order, on the device of `images`; every attack spends its whole budget of steps on every item,
found or not. What comes back is float: `shifts.attacks.budget` makes whole levels of it.

Shared arguments of all of them:
    logits: pixels (batch, 3, height, width) float32 in [0, 1] to (batch, n_classes); see `shifts.attacks.goal`.
    images: (batch, 3, height, width) float32, multiples of 1/255.
    eps: how far a value may move, such as 2/255.
    steps: of the optimiser.
    rng: the only source of chance; torch's own generators are left as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchattacks import APGD, FGSM, MIFGSM, PGD, Square

from shifts.attacks.goal import Logits, log_odds_of_failing

Images = Float[Tensor, "batch 3 height width"]

STEP = 2.5  # PGD's step x steps, in eps: reaches every corner and can turn back. arXiv 1706.06083, section 5
DECAY = 1.0  # of MI-FGSM's momentum. arXiv 1710.06081, section 4
QUERIES_PER_STEP = 20  # calls that the black box has where a white box has a step, which costs about three


def random_noise(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """Every value moved by eps, up or down by the toss of a coin."""
    signs = rng.integers(0, 2, size=tuple(images.shape), dtype=np.int8) * 2 - 1
    return (images + eps * torch.from_numpy(signs).to(images)).clamp(0, 1)


def fgsm(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """Every value moved by eps along the sign of its gradient. Source: Goodfellow et al. 2015 (arXiv 1412.6572)."""
    return FGSM(_Classifier(logits, images), eps)(images, _found(images))


def pgd(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """The last iterate of an ascent by signs from a random start, projected onto the budget at each step.

    Rounding takes next to nothing from it, so its result is left as it is: at 1/255 3.5 % of the values fall back to
    the original's level, and the mean loss stays within 0.1 % (`tiny`, 64 images of `scenes/test`).

    Source: Madry et al. 2018 (arXiv 1706.06083).
    """
    attack = PGD(_Classifier(logits, images), eps, STEP * eps / steps, steps, random_start=True)
    with _torch_seeded(rng, images):
        return attack(images, _found(images))


def mi_fgsm(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """Ascent by signs of the gradients' running sum, from the image itself, in steps of eps / steps.

    Where an item has no gradient at all the result is NaN, as it is where the gradient is NaN.

    Source: Dong et al. 2018 (arXiv 1710.06081), algorithm 1.
    """
    return MIFGSM(_Classifier(logits, images), eps, eps / steps, steps, DECAY)(images, _found(images))


def apgd(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """The iterate of greatest loss of an ascent with momentum that halves its steps where they no longer help.

    Not torchattacks' `APGD(...)(images, labels)`: that drops rows which are already misclassified, gives unsuccessful
    ones back unchanged, and reseeds torch.

    Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1.
    """
    attack = APGD(_LeadClassifier(logits, images, found=0), eps=eps, steps=steps)
    with _torch_seeded(rng, images):
        best: Tensor = attack.attack_single_run(images, _found(images))[0]
    return best


def square(logits: Logits, images: Images, eps: float, steps: int, rng: np.random.Generator) -> Images:
    """Squares of plus or minus eps at random places, kept where the loss rises; `QUERIES_PER_STEP` tries a step.

    Not torchattacks' `Square(...)(images, labels)`, for the reasons given at `apgd`; nor are items left alone once they
    are lost.

    Source: Andriushchenko et al. 2020 (arXiv 1912.00049), algorithms 1 and 2.
    """
    attack = Square(_LeadClassifier(logits, images, found=1000), eps=eps, n_queries=QUERIES_PER_STEP * steps)
    attack.init_hyperparam(images)
    with _torch_seeded(rng, images):
        _, best = attack.attack_single_run(images, _found(images))
    return best


class _Classifier(nn.Module):
    """`logits` as a classifier in torchattacks' eyes, which asks the first parameter for the device."""

    def __init__(self, logits: Logits, images: Images) -> None:
        super().__init__()
        self._logits = (logits,)  # in a tuple: were it a module, it would be switched to eval mode
        self.device_mark = nn.Parameter(images.new_empty(0), requires_grad=False)

    def forward(self, images: Images) -> Float[Tensor, "batch n_classes"]:
        return self._logits[0](images)


class _LeadClassifier(_Classifier):
    """The same with two classes, made so that losses close to 0 can be told apart by those that compare them.

    Column 1 is the lead of everything else over "found", as asinh of it in float64, column 0 is `found`. Whatever the
    lead is, its cross-entropy neither rounds to 0 nor loses its order, and with `found` at 1000 the first class has
    always won.
    """

    def __init__(self, logits: Logits, images: Images, found: float) -> None:
        super().__init__(logits, images)
        self._found = found

    def forward(self, images: Images) -> Float[Tensor, "batch 2"]:
        logits = super().forward(images).double()
        lead = log_odds_of_failing(logits)
        return nn.functional.pad(lead.nan_to_num().asinh()[:, None], (1, 0), value=self._found)


def _found(images: Images) -> Tensor:
    return torch.zeros(len(images), dtype=torch.long, device=images.device)


@contextmanager
def _torch_seeded(rng: np.random.Generator, images: Images) -> Iterator[None]:
    """torch's generators of the processor and of the images' device continue from `rng`, and are put back after."""
    seed = int(rng.integers(2**63))
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if images.is_cuda:
            torch.cuda.default_generators[images.device.index].manual_seed(seed)
        yield
