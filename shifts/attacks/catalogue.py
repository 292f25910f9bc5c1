"""Every attack there is, one line each, and the way from an id such as `pgd:2` to an attack within its budget.

An attack's author writes one function. It may trust its arguments, and whatever it returns is brought back inside the
budget by `shifts.attacks.budget`: pixels are clipped and rounded to whole levels, strings that were edited too often
fall back to the original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import UsageError, unknown_name
from bench.types import Direction, ThreatModel
from shifts.lazy import Lazy

Modality = Literal["image", "text", "joint"]
EPS: tuple[int, ...] = (1, 2, 4, 8)
STEPS = 10


@dataclass(frozen=True)
class Attack:
    """A named attack; an id names one budget of it.

    Args:
        name: as in the literature.
        modality: what it changes. `image` and `joint` budgets are eps in levels of 255, `text` budgets are edits
            (Levenshtein distance in `unit`); a joint attack also makes one word edit.
        access: `white`, if it needs gradients; `black`, if scores are enough.
        budgets: those that suites may name.
        unit: in which the budget counts.
        version: raised whenever the same inputs would give other bytes.
        run: the author's function. Image: `(logits, images, eps, steps, rng) -> images`, text:
            `(losses, texts, budget, rng) -> texts`, joint: `(victim, images, texts, owners, eps, steps, rng) ->
            (images, texts)`; see the modules.
        summary: one line for people.
    """

    name: str
    modality: Modality
    access: Literal["white", "black"]
    budgets: tuple[int, ...]
    version: int
    run: Callable[..., Any]
    summary: str
    passes: tuple[int, int]
    unit: Literal["levels of 255", "characters", "words"] = "levels of 255"

    @property
    def threat_models(self) -> tuple[ThreatModel, ...]:
        """What of a collection it can attack."""
        if self.modality == "joint":
            return ("both",)
        single: tuple[ThreatModel, ...] = ("query", "gallery_target", "gallery_all")
        return (*single, "distractor") if self.modality == "image" else single

    def directions(self, threat_model: ThreatModel) -> tuple[Direction, ...]:
        """The questions whose answers an attack under that threat model can change."""
        if self.modality == "joint":
            return ("t2i", "i2t")
        asks_with_images = (threat_model == "query") == (self.modality == "image")
        return ("i2t",) if asks_with_images else ("t2i",)

    @property
    def edit_unit(self) -> Literal["characters", "words"]:
        """In which its edits of captions count."""
        return "characters" if self.unit == "characters" else "words"

    @property
    def family(self) -> str:
        """What it is averaged with."""
        return f"{self.modality}_attack"

    def id(self, budget: int) -> str:
        """The id of this attack within `budget`, such as "pgd:2"."""
        return f"{self.name}:{budget}"


def _image(name: str, access: Literal["white", "black"], passes: int, summary: str, module: str = "image") -> Attack:
    return Attack(name, "image", access, EPS, 1, Lazy(f"attacks.{module}", name), summary, (passes, 0))


def _text(name: str, unit: Literal["characters", "words"], module: str, strings: int, summary: str) -> Attack:
    return Attack(name, "text", "black", (1, 2), 1, Lazy(f"attacks.{module}", name), summary, (0, strings), unit)


def _joint(name: str, passes: tuple[int, int], summary: str) -> Attack:
    return Attack(name, "joint", "white", EPS, 1, Lazy("attacks.joint", name), summary, passes)


CATALOGUE: tuple[Attack, ...] = (
    _image("random_noise", "black", 2, "every value up or down by eps at random: what any attack must beat"),
    _image("fgsm", "white", 5, "one step along the gradient's sign"),
    _image("pgd", "white", 32, "projected gradient ascent from a random start"),
    _image("mi_fgsm", "white", 32, "iterated steps with momentum"),
    _image("apgd", "white", 36, "projected ascent that chooses its own step sizes"),
    _image("square", "black", 203, "random squares, kept where they hurt"),
    _image("sga_image", "white", 152, "the image step of SGA: ascent over several scales at once", "joint"),
    _text("bert_attack", "words", "words", 60, "the words that matter most, for others that fit"),
    _text("charmer", "characters", "characters", 450, "any character inserted, deleted or replaced, best places first"),
    _text("typo_greedy", "characters", "characters", 230, "slips to a neighbouring key, the worst first"),
    _joint("separate", (33, 60), "image and words, each for itself"),
    _joint("co_attack", (34, 60), "words first, then the image against itself and the changed words"),
    _joint("sga", (153, 120), "set-guided: all captions of an image against all scales of it"),
)


def find_attack(name: str) -> Attack:
    """The attack of that name, without a budget.

    Raises:
        UsageError: there is none; the message offers the nearest.
    """
    for attack in CATALOGUE:
        if attack.name == name:
            return attack
    raise unknown_name("attack", name, (attack.name for attack in CATALOGUE), "rove list attacks")


def parse_attack(attack_id: str) -> tuple[Attack, int]:
    """The attack and budget that an id names.

    Raises:
        UsageError: the name is unknown, or the budget is missing or not one of the attack's.
    """
    name, _, amount = attack_id.partition(":")
    attack = find_attack(name)
    for known in attack.budgets:
        if str(known) == amount:
            return attack, known
    known_budgets = ", ".join(map(str, attack.budgets))
    got = f"'{amount}'" if amount else "none"
    raise UsageError(
        f"{name} has the budgets {known_budgets} ({attack.unit}); got {got}. Write {attack.id(attack.budgets[-1])}."
    )
