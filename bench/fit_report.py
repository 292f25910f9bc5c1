"""What a finished fit says of itself: the manifest, the thin `model.py`, the model card, the plot of its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bench.errors import InputError, describe_validation
from bench.fit_data import FitData
from bench.recipes import Recipe
from bench.records import Fit, Manifest, Parameters, TrainingData, TriedSetting
from bench.submission import Submission
from bench.types import Collection, FitFacts

if TYPE_CHECKING:
    import altair

HELD_OUT = "held out"
_DIGITS = 4
_WIDTH, _HEIGHT = 360, 240
_PANELS = (("loss", "Loss"), ("validation_r1", "Validation R@1, percent"))

_MODEL = '''"""{name}: made by `rove fit {recipe}`."""

from __future__ import annotations

from submissions.{recipe}.model import load

__all__ = ["load"]
'''

_CARD = """# {name}

{summary} `rove describe {recipe}` and Rove's docs/recipes.md say more.

| | |
| --- | --- |
{facts}

## Use

    rove check ./{name}
    rove run ./{name} --suite SUITE

`rove list suites` shows what SUITE can be.{needs}

## Limits

{limits}
"""


@dataclass(frozen=True)
class Fitted:
    """What was fitted, from what, and what came of it.

    Args:
        recipe: that made it.
        base: that it started from; None for a recipe that makes one from nothing.
        args: of the recipe, complete.
        seed: of the fit.
        data: that it learnt from.
        data_sha256: of the training collection, and of the generic one where there is one.
        saw_evaluation_data: whether a test split is known to be among what the weights have seen.
        name: asked for; empty for the default.
        facts: what the recipe reports; None where it reports nothing, or has not ended.
        tried: the settings that a search has tried, with what each was chosen by.
    """

    recipe: Recipe
    base: Submission | None
    args: Mapping[str, str]
    seed: int
    data: FitData
    data_sha256: Sequence[str]
    saw_evaluation_data: bool
    name: str = ""
    facts: FitFacts | None = None
    tried: Sequence[TriedSetting] = ()


def make_manifest(fitted: Fitted, own: Manifest | None = None) -> Manifest:
    """The manifest of a fitted submission.

    Args:
        fitted: what it says.
        own: the one that the recipe itself wrote; its facts stay, but for those of this fit.

    Raises:
        InputError: a name or an argument is not as a manifest must be.
    """
    try:
        stated = own.model_dump(exclude_defaults=True, mode="json") if own else _describe_model(fitted)
        stated |= {"trained_on": _seen(fitted), "fit": _describe_fit(fitted)}
        if fitted.name:
            stated["name"] = fitted.name
        return Manifest.model_validate(stated)
    except ValidationError as error:
        raise InputError(f"the fitted submission's manifest: {describe_validation(error)}") from None


def to_toml(contents: Mapping[str, Any]) -> str:
    """A mapping of texts, numbers, truth values, lists and mappings as TOML."""
    return "\n".join(_toml_lines(contents, ())).lstrip("\n") + "\n"


def manifest_toml(manifest: Manifest) -> str:
    """A manifest as TOML, without what has its default."""
    return to_toml(manifest.model_dump(mode="json", exclude_defaults=True, exclude_none=True))


def make_model(manifest: Manifest, recipe: Recipe) -> str:
    """The `model.py` of a fitted submission, which imports the recipe's."""
    return _MODEL.format(name=manifest.name, recipe=recipe.name)


def make_card(manifest: Manifest, fitted: Fitted) -> str:
    """The README of a fitted submission."""
    rows = [f"| {name} | {_cell(value)} |" for name, value in _card_facts(manifest, fitted).items() if value]
    needs = f" It needs {', '.join(manifest.requires)}." if manifest.requires else ""
    return _CARD.format(
        name=manifest.name,
        summary=fitted.recipe.summary,
        recipe=fitted.recipe.name,
        facts="\n".join(rows),
        needs=needs,
        limits="\n".join(f"- {limit}" for limit in _limits(fitted)),
    )


def write_plot(log: Path, picture: Path) -> bool:
    """Draws a log's loss and validation R@1 over the epochs as SVG; False, and no file, if it has neither."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    rows = [row for row in rows if row.get("epoch") is not None]
    panels = [(name, title) for name, title in _PANELS if any(row.get(name) is not None for row in rows)]
    if not panels:
        return False
    picture.write_text(_to_svg(_draw(rows, panels)), encoding="utf-8")
    return True


def _describe_model(fitted: Fitted) -> dict[str, Any]:
    if fitted.base is None:
        raise InputError(f"recipe {fitted.recipe.name} wrote no submission.toml; expected a submission folder.")
    base, recipe = fitted.base.manifest, fitted.recipe
    return {
        "name": f"{base.name}-{recipe.name}",
        "title": f"{base.title or base.name}, {recipe.method or recipe.name}",
        "summary": recipe.summary,
        "method": recipe.method,
        "base": base.name,
        "license": base.license,
        "fetches": base.fetches,
        "requires": list(dict.fromkeys([*base.requires, *recipe.requires])),
        "args": dict(recipe.model_args),
        "parameters": _parameters(fitted).model_dump(),
    }


def _parameters(fitted: Fitted) -> Parameters:
    facts = fitted.facts
    if facts is None:
        return Parameters()
    return Parameters(total=facts.total + facts.added, trainable=facts.trainable, added=facts.added)


def _seen(fitted: Fitted) -> list[str]:
    """Collections whose items the weights have seen: the base's, then this fit's."""
    earlier = fitted.base.manifest.trained_on if fitted.base else []
    return list(dict.fromkeys([*earlier, *(part.train.name for part in fitted.data.parts)]))


def _describe_fit(fitted: Fitted) -> dict[str, Any]:
    facts = fitted.facts
    stated = Fit(
        recipe=fitted.recipe.name,
        version=fitted.recipe.version,
        seed=fitted.seed,
        args=dict(fitted.args),
        data=[_describe_data(part.train, sha256) for part, sha256 in _parts(fitted)],
        validation=" and ".join(_choices(fitted.data)),
        saw_evaluation_data=fitted.saw_evaluation_data,
    )
    tried = [setting.model_dump() for setting in fitted.tried]
    return {**stated.model_dump(), **(_reported(facts) if facts else {}), "tried": tried}


def _choices(data: FitData) -> list[str]:
    """What choices were made on, each named once."""
    return list(dict.fromkeys(part.validation.name if part.validation else HELD_OUT for part in data.parts))


def _parts(fitted: Fitted) -> Iterator[tuple[FitData, str]]:
    """What was learnt from, and what was not to be forgotten, each with its digest."""
    return zip(fitted.data.parts, fitted.data_sha256, strict=True)


def _describe_data(train: Collection, sha256: str) -> TrainingData:
    return TrainingData(name=train.name, sha256=sha256, n_images=len(train.images), n_captions=len(train.captions))


def _reported(facts: FitFacts) -> dict[str, Any]:
    """What a recipe says that it did, as `Fit` has it."""
    relative = facts.relative_seconds
    return {
        "epochs": round(facts.epochs, _DIGITS),
        "steps": facts.steps,
        "seconds": round(facts.seconds, 1),
        "relative_seconds": None if relative is None else round(relative, _DIGITS),
        "mergeable": facts.mergeable,
        "validation_r1": round(facts.validation_r1, _DIGITS),
        "base_validation_r1": round(facts.base_validation_r1, _DIGITS),
    }


def _card_facts(manifest: Manifest, fitted: Fitted) -> dict[str, str]:
    base, (learnt, *generic) = fitted.base, [_card_data(part, sha256) for part, sha256 in _parts(fitted)]
    return {
        "Method": f"{manifest.method} (recipe {fitted.recipe.name}, version {fitted.recipe.version})",
        "Base": f"{base.name} {_pairs(base.args)}" if base else "",
        "Learnt from": learnt,
        "Not to be forgotten": "".join(generic),
        "Licence of these data": "; ".join(dict.fromkeys(filter(None, (part.license for part in fitted.data.parts)))),
        "Chosen by": manifest.fit.validation if manifest.fit else "",
        "Seed": str(fitted.seed),
        "Recipe's arguments": _pairs(fitted.args),
        "Licence of the base": manifest.license,
        **(_figures(fitted.facts) if fitted.facts else {}),
        "Settings tried": "; ".join(f"{_pairs(one.args)}: {one.validation_r1:.1f} %" for one in fitted.tried),
    }


def _card_data(part: FitData, sha256: str) -> str:
    train = part.train
    return f"{train.name}: {len(train.images):,} images, {len(train.captions):,} captions, sha256 {sha256}"


def _figures(facts: FitFacts) -> dict[str, str]:
    relative = facts.relative_seconds
    ratio = "" if relative is None else f", {relative:.2f} of as many steps of full fine-tuning"
    return {
        "Validation R@1": f"{facts.validation_r1:.1f} %; the base: {facts.base_validation_r1:.1f} %",
        "Parameters that learnt": f"{facts.trainable:,} ({facts.trainable / facts.total:.3%} of {facts.total:,})",
        "Parameters added in use": f"{facts.added:,}{' (folded into the base)' if facts.mergeable else ''}",
        "Training": f"{facts.epochs:.4g} epochs, {facts.steps:,} steps, {facts.seconds:,.0f} s{ratio}",
    }


def _limits(fitted: Fitted) -> list[str]:
    name = fitted.data.train.name
    seen = "Images of a test split are among what it has seen: its results there are no test."
    unseen = f"It has learnt from {name}: results on other splits of that data set are in its own domain."
    limits = [seen if fitted.saw_evaluation_data else unseen]
    if fitted.facts is not None:
        limits.append("R@1 above is of the images that choices were made on, a few hundred at most: no result.")
    if fitted.base is not None:
        limits.append("It has the limits of its base, whose weights it needs: they are named, or lie in `base/`.")
    return limits


def _pairs(args: Mapping[str, str]) -> str:
    return " ".join(f"`{key}={value}`" for key, value in args.items() if value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _toml_lines(contents: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first, because what follows a table's head belongs to that table."""
    tables = {key: value for key, value in contents.items() if isinstance(value, Mapping)}
    arrays = {key: value for key, value in contents.items() if _is_table_array(value)}
    lines = [
        f"{_toml_key(key)} = {_toml_value(value)}"
        for key, value in contents.items()
        if key not in tables and key not in arrays
    ]
    for key, table in tables.items():
        lines += ["", f"[{_toml_path(path, key)}]", *_toml_lines(table, (*path, key))]
    for key, items in arrays.items():
        for item in items:
            lines += ["", f"[[{_toml_path(path, key)}]]", *_toml_lines(item, (*path, key))]
    return lines


def _is_table_array(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_path(path: tuple[str, ...], key: str) -> str:
    return ".".join(_toml_key(part) for part in (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    """JSON, which TOML's strings, numbers, truth values and arrays are, but for one character."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _draw(rows: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str]]) -> altair.HConcatChart:
    import altair

    charts = [
        altair.Chart(altair.InlineData(values=[row for row in rows if row.get(name) is not None]))
        .mark_line(point=True)
        .encode(
            x=altair.X("epoch:Q", title="Epoch", scale=altair.Scale(zero=True), axis=altair.Axis(tickMinStep=1)),
            y=altair.Y(f"{name}:Q", title=title, scale=altair.Scale(zero=False)),
        )
        .properties(width=_WIDTH, height=_HEIGHT)
        for name, title in panels
    ]
    return altair.HConcatChart(hconcat=charts)


def _to_svg(chart: altair.HConcatChart) -> str:
    import altair
    import vl_convert

    version = re.findall(r"\d+\.\d+", altair.SCHEMA_VERSION)[0]
    return vl_convert.vegalite_to_svg(json.dumps(chart.to_dict()), vl_version=version)
