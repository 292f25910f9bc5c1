"""One table of tests for every image attack, and each against what its paper says, written out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shifts.attacks.budget import enforce_pixels, to_pixels
from shifts.attacks.catalogue import CATALOGUE, Attack, find_attack
from shifts.attacks.goal import Goal
from shifts.attacks.image import DECAY, QUERIES_PER_STEP, STEP

ATTACKS = [pytest.param(attack, id=attack.name) for attack in CATALOGUE if attack.modality == "image"]
STRONG = [pytest.param(attack, id=attack.name) for attack in CATALOGUE if attack.modality == "image"][1:]
DRAW_NOTHING = {"fgsm", "mi_fgsm"}
EPS, STEPS = 4, 10
BATCH, PX, DIM, N = 6, 24, 12, 40


def make_rng(key: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key))


class Net(nn.Module):
    """A small victim that never changes: a query goal over random captions, of which each image is near its own two."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2), nn.GELU(), nn.Conv2d(8, 8, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(8 * 4 * 4, DIM)
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * (3 / parameter[0].numel()) ** 0.5
        levels = torch.randint(0, 256, (BATCH, PX, PX, 3), generator=draw)
        self.levels = levels.to(torch.uint8).numpy()
        with torch.no_grad():
            centred = functional.normalize(self.layers(to_pixels(self.levels) - 0.5))
        own = torch.arange(N) // 2 == torch.arange(BATCH)[:, None]
        noise = functional.normalize(torch.randn(N, DIM, generator=draw))
        self.goal = Goal(functional.normalize(own.float().T @ centred + 0.5 * noise), own)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.goal.logits(self.layers(pixels - 0.5))

    def losses(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.goal.losses(self.layers(pixels - 0.5))


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The net is so small that threads cost more than they bring."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def run(attack: Attack, logits: Callable[[Tensor], Tensor], levels: np.ndarray, rng: np.random.Generator) -> Tensor:
    attacked: Tensor = attack.run(logits, to_pixels(levels), EPS / 255, STEPS, rng)
    return attacked


class Watched:
    """Passes calls on, makes sure that each has the whole batch in its order, and remembers all losses."""

    def __init__(self, net: Net) -> None:
        self._net, self._start, self.losses = net, to_pixels(net.levels), []

    def __call__(self, pixels: Tensor) -> Tensor:
        assert pixels.shape == self._start.shape
        assert pixels.dtype == torch.float32
        logits = self._net(pixels)
        self.losses.append(functional.cross_entropy(logits.detach(), torch.zeros(BATCH).long(), reduction="none"))
        return logits


@pytest.mark.parametrize("attack", ATTACKS)
def test_same_rng_same_bytes_whatever_the_global_generators(attack: Attack, net: Net) -> None:
    results = []
    for key, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        results.append(run(attack, net, net.levels, make_rng(key)).numpy().tobytes())
    assert results[0] == results[1]
    assert (results[0] == results[2]) == (attack.name in DRAW_NOTHING)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_but_the_rng_is_changed(attack: Attack, net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    images = to_pixels(net.levels)
    before = images.clone(), torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    net.train()
    attacked = attack.run(net, images, EPS / 255, STEPS, make_rng())
    assert net.training
    assert torch.equal(images, before[0])
    assert not images.requires_grad
    assert not attacked.requires_grad
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (repr(np.random.get_state()), random.getstate()) == before[2:]  # noqa: NPY002
    assert all(parameter.grad is None for parameter in net.parameters())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_comes_back_keeps_the_budget_by_itself(attack: Attack, net: Net) -> None:
    attacked = run(attack, net, net.levels, make_rng())
    assert attacked.dtype == torch.float32
    assert (attacked - to_pixels(net.levels)).abs().max() <= EPS / 255 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1


@pytest.mark.parametrize("attack", STRONG)
def test_it_beats_noise_on_every_image_even_in_whole_levels(attack: Attack, net: Net) -> None:
    noise, attacked = (
        net.losses(to_pixels(enforce_pixels(run(a, net, net.levels, make_rng()), net.levels, EPS)))
        for a in (find_attack("random_noise"), attack)
    )
    assert (attacked > noise).all()


@pytest.mark.parametrize("attack", STRONG)
def test_items_that_are_already_lost_are_attacked_like_the_others(attack: Attack, net: Net) -> None:
    lost = Net()
    lost.goal = Goal(net.goal.others, net.goal.own.roll(1, dims=0))
    watched = Watched(lost)
    attacked = run(attack, watched, net.levels, make_rng())
    assert (lost(to_pixels(net.levels))[:, 1] > 0).any()
    assert (lost.losses(attacked) > lost.losses(to_pixels(net.levels))).all()


@pytest.mark.parametrize(
    ("name", "n_calls"), [("fgsm", 1), ("pgd", STEPS), ("mi_fgsm", STEPS), ("square", 1 + QUERIES_PER_STEP * STEPS)]
)
def test_every_call_has_the_whole_batch_and_all_are_spent(name: str, n_calls: int, net: Net) -> None:
    watched = Watched(net)
    run(find_attack(name), watched, net.levels, make_rng())
    assert len(watched.losses) == n_calls


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_the_worst_of_all_that_was_seen_comes_back(name: str, net: Net) -> None:
    watched = Watched(net)
    attacked = run(find_attack(name), watched, net.levels, make_rng())
    torch.testing.assert_close(net.losses(attacked), torch.stack(watched.losses).amax(dim=0))
    assert len(watched.losses) > STEPS


@pytest.mark.parametrize("name", ["apgd", "square"])
@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_losses_are_told_apart_where_float32_calls_them_equal(name: str, shift: float, net: Net) -> None:
    """The lead of "found" changed by a constant changes no comparison, so the bytes must stay nearly the same."""
    results = [
        run(find_attack(name), lambda pixels: net(pixels) + torch.tensor([constant, 0.0]), net.levels, make_rng())  # noqa: B023
        for constant in (0.0, shift)
    ]
    assert (net.losses(results[1]) > net.losses(to_pixels(net.levels)) + 0.1).all()
    torch.testing.assert_close(net.losses(results[1]), net.losses(results[0]), rtol=0.05, atol=0)


def ascend(net: Net, start: Tensor, steps: int, alpha: float, decay: float | None) -> Tensor:
    """Signed ascent written out, with the momentum of MI-FGSM where `decay` is given."""
    images, momentum = to_pixels(net.levels), 0.0
    pixels = start
    for _ in range(steps):
        pixels = pixels.detach().requires_grad_()
        loss = functional.cross_entropy(net(pixels), torch.zeros(BATCH, dtype=torch.long))
        (direction,) = torch.autograd.grad(loss, pixels)
        if decay is not None:
            direction = momentum = decay * momentum + direction / direction.abs().mean(dim=(1, 2, 3), keepdim=True)
        delta = (pixels.detach() + alpha * direction.sign() - images).clamp(-EPS / 255, EPS / 255)
        pixels = (images + delta).clamp(0, 1)
    return pixels


def test_pgd_is_the_bare_loop_to_the_bit(net: Net) -> None:
    draw = torch.Generator().manual_seed(int(make_rng().integers(2**63)))
    images = to_pixels(net.levels)
    start = images + torch.empty_like(images).uniform_(-EPS / 255, EPS / 255, generator=draw)
    wanted = ascend(net, start.clamp(0, 1), STEPS, STEP * (EPS / 255) / STEPS, None)
    assert torch.equal(run(find_attack("pgd"), net, net.levels, make_rng()), wanted)


def test_mi_fgsm_is_the_bare_loop_to_the_bit(net: Net) -> None:
    wanted = ascend(net, to_pixels(net.levels), STEPS, EPS / 255 / STEPS, DECAY)
    assert torch.equal(run(find_attack("mi_fgsm"), net, net.levels, make_rng()), wanted)


def test_fgsm_is_one_step_to_the_bit(net: Net) -> None:
    wanted = ascend(net, to_pixels(net.levels), 1, EPS / 255, None)
    assert torch.equal(run(find_attack("fgsm"), net, net.levels, make_rng()), wanted)


@pytest.mark.parametrize("name", ["random_noise", "square"])
def test_black_boxes_go_to_the_edge_of_the_budget(name: str, net: Net) -> None:
    enforced = enforce_pixels(run(find_attack(name), net, net.levels, make_rng()), net.levels, EPS).astype(int)
    start = net.levels.astype(int)
    moved = np.abs(enforced - start)
    assert ((moved == EPS) | (enforced == 0) | (enforced == 255)).all()
    assert 0.4 < (enforced > start).mean() < 0.6


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_victim_without_a_usable_gradient_leaves_the_budget_kept(attack: Attack, value: float, net: Net) -> None:
    attacked = run(attack, lambda pixels: net(pixels) * value, net.levels, make_rng())
    assert np.abs(enforce_pixels(attacked, net.levels, EPS).astype(int) - net.levels).max() <= EPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attack", ATTACKS)
def test_it_stays_on_the_device_of_the_images(attack: Attack) -> None:
    net = Net().cuda()
    net.goal = Goal(net.goal.others.cuda(), net.goal.own.cuda())
    before = torch.cuda.get_rng_state()
    results = [attack.run(net, to_pixels(net.levels).cuda(), EPS / 255, STEPS, make_rng()) for _ in range(2)]
    assert results[0].is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(*results)
