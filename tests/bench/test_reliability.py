"""Models that hide their gradient are caught, each for its own reason; honest ones, robust or not, are not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional

from bench.data.registry import load_collection
from bench.reliability import BLACK_BOX, BLACK_BOX_STEPS, LARGE_EPS, NOISE, Examination, examine, examine_texts
from bench.types import LoadContext
from bench.worker.autograd import autograd_runs
from shifts.attacks.catalogue import EPS, find_attack
from shifts.attacks.goal import Goal

CONTROLS = Path(__file__).parents[1] / "toys" / "controls"
N_IMAGES, STEPS, MAIN = 12, 4, ("pgd", 4)
REASONS = {
    "detached": "zero gradient",
    "saturated": "zero gradient",
    "half_liar": "zero gradient",
    "hidden_zero": "wrong gradient",
    "liar": "wrong gradient",
    "searcher": "wrong gradient",
    "nan_gradient": "gradient not finite",
    "randomised": "randomised",
    "seeded_by_place": "randomised",
    "drifting": "state drifts",
    "input_quantiser": "quantised",
    "straight_through": "quantised",
    "output_quantiser": "quantised",
    "other_path": "other paths for gradient and deployment",
    "optimiser": "optimises while it encodes",
}
HONEST = ("none", "blurred")


class InProcess:
    """A control as `bench.victim.Victim` shows it, without a worker."""

    def __init__(self, encoder, differentiable: bool = True) -> None:
        self.encoder, self.differentiable = encoder, differentiable
        self.autograd_calls = 0
        self.passes = {"forward": 0, "both": 0}

    def embed_pixels(self, pixels):
        assert self.differentiable
        self.passes["both" if pixels.requires_grad else "forward"] += len(pixels)
        with torch.enable_grad():
            vectors = self._counted(self.encoder.embed_pixels, pixels)
        return vectors if vectors.requires_grad else vectors + 0 * pixels.flatten(1).sum(dim=1, keepdim=True)

    def encode_images(self, images):
        self.passes["forward"] += len(images)
        return torch.from_numpy(self._counted(self.encoder.encode_images, [PIL.Image.fromarray(i) for i in images]))

    def _counted(self, function, items):
        before = autograd_runs()
        found = function(items)
        self.autograd_calls += autograd_runs() - before
        return found


@dataclass(frozen=True, eq=False)
class Task:
    """Scenes at the controls' size, and their captions as the gallery: the same for every control."""

    images: np.ndarray
    goal: Goal


@pytest.fixture(scope="module")
def controls():
    spec = importlib.util.spec_from_file_location("controls_model", CONTROLS / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load(controls):
    return lambda fault: controls.load(LoadContext(CONTROLS, "cpu", "float32", {"fault": fault}, offline=True))


@pytest.fixture(scope="module")
def task(load) -> Task:
    collection = load_collection("scenes/test").head(N_IMAGES)
    honest = load("none")
    texts = functional.normalize(torch.from_numpy(honest.encode_texts(collection.captions)))
    own = torch.zeros((N_IMAGES, len(texts)), dtype=torch.bool)
    own[tuple(torch.from_numpy(collection.positives).T)] = True
    return Task(levels(honest.pixels([image.decode() for image in collection.images])), Goal(texts, own))


def levels(pixels: torch.Tensor) -> np.ndarray:
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def crafter(victim: InProcess, task: Task):
    """Attacked images as the harness makes them: seeded, inside the budget, each asked for once."""
    clean = torch.from_numpy(task.images).permute(0, 3, 1, 2).float() / 255

    @cache
    def craft(name: str, eps: int, steps: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[eps, steps]))
        found = find_attack(name).run(
            lambda pixels: task.goal.logits(victim.embed_pixels(pixels)), clean, eps / 255, steps, rng
        )
        kept = torch.where(found.isfinite(), found.detach(), clean).clamp(0, 1)
        return levels(torch.minimum(torch.maximum(kept, clean - eps / 255), clean + eps / 255))

    return craft


def examined(victim: InProcess, task: Task, craft=None, main=MAIN, steps=STEPS) -> Examination:
    rng = np.random.Generator(np.random.Philox(1))
    return examine(victim, task.images, task.goal, craft or crafter(victim, task), main, rng, steps)


def faults(examination: Examination) -> set[str]:
    return {check.name for check in examination.checks if not check.passed}


@pytest.fixture(scope="module")
def honest(load, task):
    """The honest victim, with what it was attacked with."""
    victim = InProcess(load("none"))
    return victim, crafter(victim, task)


def test_every_control_has_an_expected_verdict(controls) -> None:
    assert {*REASONS, *HONEST} == set(controls.FAULTS)


@pytest.mark.parametrize("fault", REASONS)
def test_a_fault_is_found_for_its_own_reason(fault: str, load, task: Task) -> None:
    with torch.random.fork_rng():
        found = examined(InProcess(load(fault)), task)
    assert REASONS[fault] in faults(found)
    assert found.verdict.startswith("unreliable: ")
    assert REASONS[fault] in found.verdict


@pytest.mark.parametrize(("fault", "eps"), [("none", 1), ("none", 4), ("blurred", 4)])
def test_honest_models_are_reliable(fault: str, eps: int, load, task: Task) -> None:
    found = examined(InProcess(load(fault)), task, main=("pgd", eps))
    assert found.verdict == "reliable", [check for check in found.checks if not check.passed]


def test_the_curve_is_what_the_deployed_model_retrieves(honest, task: Task) -> None:
    victim, craft = honest
    found = examined(victim, task, craft)
    texts, own = task.goal.others.numpy(), task.goal.own.numpy()

    def hits(images: np.ndarray) -> list[bool]:
        scores = victim.encoder.encode_images([PIL.Image.fromarray(image) for image in images]) @ texts.T
        return [bool(mine[row.argmax()]) for row, mine in zip(scores, own, strict=True)]

    clean = hits(task.images)
    assert [point.eps for point in found.curve] == [*EPS, LARGE_EPS]
    for eps, recall, asr in found.curve:
        attacked = hits(craft("pgd", eps, STEPS))
        lost = [before and not after for before, after in zip(clean, attacked, strict=True)]
        assert recall == pytest.approx(sum(attacked) / N_IMAGES)
        assert asr == pytest.approx(sum(lost) / sum(clean))


MISMADE = {
    "ASR falls with eps": {("pgd", 1, STEPS): ("pgd", 8, STEPS)},
    "survives a large eps": {("pgd", LARGE_EPS, STEPS): ("pgd", 4, STEPS)},
    "loss does not rise": {("pgd", 4, 1): ("pgd", 8, STEPS)},
    "not converged": {("pgd", 4, 2 * STEPS): ("pgd", 8, STEPS)},
    "black box stronger than white box": {(BLACK_BOX, 4, BLACK_BOX_STEPS): ("pgd", 8, STEPS)},
    "noise as strong as the attack": {(NOISE, 4, 1): ("pgd", 8, STEPS)},
}


@pytest.mark.parametrize("fault", MISMADE)
def test_an_attack_that_does_not_behave_is_found(fault: str, honest, task: Task) -> None:
    """Exactly one set of images is exchanged, and exactly the check that looks at it speaks up."""
    victim, craft = honest
    exchanged = MISMADE[fault]
    found = examined(victim, task, lambda *request: craft(*exchanged.get(request, request)))
    assert faults(found) == {fault}


def test_a_black_box_is_judged_without_a_gradient(load, task: Task) -> None:
    """A model that has none, and one that hides it, are equal to an attack that asks for none."""
    reference, blind = InProcess(load("none")), InProcess(load("detached"), differentiable=False)
    craft = crafter(reference, task)
    found = examined(blind, task, craft, main=(BLACK_BOX, 8), steps=1)
    assert found.verdict == "reliable"
    names = {check.name for check in found.checks}
    assert not {name for name in names if "gradient" in name or "converged" in name}
    assert {"randomised", "ASR falls with eps", "noise as strong as the attack", "state drifts"} <= names
    against_noise = {check.name for check in examined(blind, task, craft, main=(NOISE, 8)).checks}
    assert "noise as strong as the attack" not in against_noise


def test_texts_must_be_encoded_the_same_each_time(load) -> None:
    texts = load_collection("scenes/test").captions[:9]
    honest = load("none")
    rng = np.random.Generator(np.random.Philox(0))

    def encode(part):
        return torch.from_numpy(honest.encode_texts(part))

    assert examine_texts(encode, texts).verdict == "reliable"
    noisy = examine_texts(lambda part: encode(part) + torch.from_numpy(rng.normal(size=(len(part), 64))), texts)
    by_place = examine_texts(lambda part: encode(part) + torch.arange(len(part))[:, None] * torch.eye(64)[0], texts)
    assert noisy.verdict == by_place.verdict == "unreliable: randomised"


def test_the_same_generator_finds_the_same_figures(honest, task: Task) -> None:
    victim, craft = honest
    before = torch.random.get_rng_state()
    assert examined(victim, task, craft) == examined(victim, task, craft)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_that_finds_nothing_can_be_examined(honest, task: Task) -> None:
    victim, craft = honest
    scores = victim.encode_images(task.images) @ task.goal.others.T
    farthest = functional.one_hot(scores.argmin(dim=1), scores.shape[1]).bool()
    hopeless = replace(task, goal=replace(task.goal, own=farthest))
    found = examined(victim, hopeless, craft)
    assert np.isnan(found.curve[0].asr)
    assert not {"not converged", "ASR falls with eps", "survives a large eps"} & faults(found)


def test_the_cost_is_what_the_module_says(load, task: Task) -> None:
    victim = InProcess(load("none"))
    rng = np.random.Generator(np.random.Philox(1))
    examine(victim, task.images, task.goal, crafter(victim, task), MAIN, rng, steps=10)
    assert victim.passes["both"] / N_IMAGES == 74
    assert victim.passes["forward"] / N_IMAGES == pytest.approx(85, abs=5)
