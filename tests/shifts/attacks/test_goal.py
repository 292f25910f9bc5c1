"""What attacks are after, against the same said in plain NumPy, and the gradient where float32 runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from shifts.attacks.goal import TEMPERATURE, Goal, rival_levels

RNG = np.random.default_rng(0)
BATCH, N, DIM = 5, 9, 6
OTHERS = RNG.normal(size=(N, DIM))
OTHERS /= np.linalg.norm(OTHERS, axis=1, keepdims=True)
VECTORS = RNG.normal(size=(BATCH, DIM)) * 3
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
OWN = np.zeros((BATCH, N), bool)
for row, columns in enumerate(([0], [1, 2], [3, 4, 5, 6], [0, 8], [7])):
    OWN[row, columns] = True
RIVALS = RNG.uniform(-0.2, 0.6, N) / TEMPERATURE


def losses(own: np.ndarray = OWN, rivals: np.ndarray | None = None, attract: bool = False) -> np.ndarray:
    """What the goal gives, in float64."""
    levels = None if rivals is None else torch.from_numpy(rivals)
    goal = Goal(torch.from_numpy(OTHERS), torch.from_numpy(own), levels, attract)
    vectors = torch.from_numpy(VECTORS)
    logits = goal.logits(vectors)
    torch.testing.assert_close(
        goal.losses(vectors), functional.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long), reduction="none")
    )
    return goal.losses(vectors).numpy()


def test_a_query_loses_the_share_that_all_its_positives_have_together() -> None:
    wanted = []
    for vector, own in zip(UNIT, OWN, strict=True):
        weights = [np.exp(vector @ other / TEMPERATURE) for other in OTHERS]
        wanted.append(-np.log(sum(w for w, mine in zip(weights, own, strict=True) if mine) / sum(weights)))
    np.testing.assert_allclose(losses(), wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("attract", [False, True])
def test_an_item_of_the_gallery_counts_where_it_leads_and_a_distractor_where_it_lags(attract: bool) -> None:
    wanted = []
    for vector, own in zip(UNIT, OWN, strict=True):
        leads = [vector @ OTHERS[j] / TEMPERATURE - RIVALS[j] for j in range(N) if own[j]]
        found = np.mean([np.log(1 + np.exp(-lead if attract else lead)) for lead in leads])
        wanted.append(np.log(1 + np.exp(-found)))
    np.testing.assert_allclose(losses(rivals=RIVALS, attract=attract), wanted, rtol=1e-9)


def test_rival_levels_leave_out_all_that_belongs_to_the_query() -> None:
    scores = OTHERS @ UNIT.T
    wanted = [np.log(sum(np.exp(scores[j, i] / TEMPERATURE) for i in range(BATCH) if not OWN[i, j])) for j in range(N)]
    np.testing.assert_allclose(rival_levels(torch.from_numpy(scores), torch.from_numpy(OWN.T)), wanted, rtol=1e-9)


def gradient(goal: Goal, vectors: torch.Tensor) -> torch.Tensor:
    """Scaled to a greatest value of 1; the squares of a length would underflow."""
    vectors = vectors.clone().requires_grad_()
    (found,) = torch.autograd.grad(goal.losses(vectors).sum(), vectors)
    return found / found.abs().amax(dim=1, keepdim=True)


def test_where_everything_belongs_to_an_item_it_is_still_pushed_away() -> None:
    own = torch.ones(BATCH, N, dtype=torch.bool)
    vectors = torch.from_numpy(VECTORS).float()
    assert rival_levels(torch.zeros(N, BATCH), own.T).isfinite().all()
    for rivals in (None, rival_levels(torch.zeros(N, BATCH), own.T)):
        goal = Goal(torch.from_numpy(OTHERS).float(), own, rivals)
        moved = functional.normalize(vectors + 0.1 * gradient(goal, vectors))
        assert ((moved @ goal.others.T).amax(dim=1) < (functional.normalize(vectors) @ goal.others.T).amax(dim=1)).all()


@pytest.mark.parametrize("rivals", [False, True])
def test_the_gradient_keeps_its_direction_in_float32_however_far_ahead_an_item_is(rivals: bool) -> None:
    """Its own leads by a cosine of 1: over one column for each wrong answer, half the gradient were lost."""
    axes = torch.eye(DIM)
    own = torch.zeros(1, DIM, dtype=torch.bool)
    own[0, 0] = True
    levels = torch.zeros(DIM) if rivals else None
    vectors = axes[:1] + 0.001 * torch.arange(DIM)
    single = gradient(Goal(axes, own, levels), vectors)
    double = Goal(axes.double(), own, None if levels is None else levels.double())
    torch.testing.assert_close(single, gradient(double, vectors.double()).float(), rtol=0, atol=1e-4)


def test_rows_of_a_goal_may_be_taken_in_any_order_and_twice() -> None:
    goal = Goal(torch.from_numpy(OTHERS), torch.from_numpy(OWN), torch.from_numpy(RIVALS))
    rows = torch.tensor([3, 0, 3])
    vectors = torch.from_numpy(VECTORS)
    torch.testing.assert_close(goal.take(rows).losses(vectors[rows]), goal.losses(vectors)[rows])
