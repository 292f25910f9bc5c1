"""Fitted submissions: what learnt lies in their folder, beside the name or a copy of the base it belongs to.

A folder holds `fitted.json` (which base, with which arguments, what the recipe was told), `weights.safetensors` (the
parameters that learnt, and no others), `stored.safetensors` where a recipe adds tensors that do not learn, and `base/`
unless the base comes with Rove.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.errors import InputError
from bench.types import Base, LoadContext
from submissions.backbones.backbone import Backbone, trainable

FACTS_FILE, WEIGHTS_FILE, STORED_FILE, BASE_FOLDER = "fitted.json", "weights.safetensors", "stored.safetensors", "base"
Attach = Callable[[Backbone, Mapping[str, str]], Backbone]


class Stored(nn.Module):
    """A part that a recipe adds, every parameter of which lies in the fitted folder, also those that do not learn.

    What was computed from training data, such as the keys of a cache, no load can make again.
    """


def stored(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all `Stored` parts of `module` that do not learn, by name."""
    inside = tuple(f"{path}." for path, part in module.named_modules() if isinstance(part, Stored))
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad and name.startswith(inside)
    }


def load_fitted(context: LoadContext, attach: Attach, merge: Callable[[Backbone], None] | None = None) -> Backbone:
    """The base with what was fitted on it.

    Args:
        context: of the fitted submission.
        attach: builds what learns into a base, and marks it by `requires_grad`.
        merge: folds it into the base's own layers.

    Raises:
        InputError: files are missing, or the base is not the one that it was fitted on.
    """
    facts = _read_facts(context.folder)
    base = _load_named(context, facts)
    found = digest_of(base.module)
    if found != facts["base_sha256"] and context.dtype == "float32":  # of other types the digest is another one
        raise InputError(
            f"{context.folder}: the base {facts['base']['name']} has other weights than those that it was fitted on "
            f"(sha256 {found[:12]}, expected {facts['base_sha256'][:12]}); fit it again."
        )
    before = base.tower_ids()
    backbone = attach(base, facts["args"])
    load_trained(backbone, load_file(context.folder / WEIGHTS_FILE), str(context.folder))
    _load_stored(backbone, context.folder / STORED_FILE)
    if merge is not None:
        merge(backbone)
    backbone.module.eval().requires_grad_(False)
    backbone.unchanged = {tower: digest for tower, digest in backbone.tower_ids().items() if before[tower] == digest}
    return backbone


def load_base_of(context: LoadContext) -> Backbone:
    """The base of a fitted submission, as it was before.

    Raises:
        InputError: files are missing.
    """
    return _load_named(context, _read_facts(context.folder))


def load_base(base: Base, device: str, dtype: str = "float32", offline: bool = False) -> Backbone:
    """What the base's own `load` gives.

    Raises:
        InputError: it is no backbone that recipes can change.
    """
    module = import_model(base.folder / "model.py")
    encoder = module.load(LoadContext(base.folder, device, dtype, base.args, offline))
    if not isinstance(encoder, Backbone):
        raise InputError(
            f"{base.name} is no backbone that a recipe can change; expected one whose load(context) returns a "
            "submissions.backbones.backbone.Backbone, as those of openclip, tiny and pocket do."
        )
    return encoder


def write_fitted(folder: Path, base: Base, base_sha256: str, args: Mapping[str, str], backbone: Backbone) -> None:
    """Writes `fitted.json`, `weights.safetensors`, `stored.safetensors` where there is anything to store, and, unless
    the base is shipped, a copy of it.
    """
    named = {"name": base.folder.name if base.shipped else base.name, "args": dict(base.args), "shipped": base.shipped}
    facts = {"base": named, "base_sha256": base_sha256, "args": dict(args)}
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _save(trainable(backbone.module), folder / WEIGHTS_FILE)
    if fixed := stored(backbone.module):
        _save(fixed, folder / STORED_FILE)
    if not base.shipped:
        hidden = shutil.ignore_patterns(".*", "__pycache__", "fit.*")
        shutil.copytree(base.folder, folder / BASE_FOLDER, ignore=hidden)


def load_trained(backbone: Backbone, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Puts tensors in place of the parameters that learn.

    Raises:
        InputError: they are not those that learn, in name or shape.
    """
    _fill(trainable(backbone.module), tensors, where)


def digest_of(module: nn.Module) -> str:
    """Hex sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode() + b"\0")
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}, path)
    path.chmod(0o644)


def _load_stored(backbone: Backbone, path: Path) -> None:
    if fixed := stored(backbone.module):
        if not path.is_file():
            raise InputError(f"{path} is missing; `rove fit RECIPE --base SUBMISSION ...` makes a whole folder.")
        _fill(fixed, load_file(path), str(path))


def _fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Puts tensors in place of parameters that have the same names and shapes."""
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise InputError(f"{where}: the weights do not fit the recipe's model, first {wrong[0]} {wrong[1]}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _read_facts(folder: Path) -> dict[str, Any]:
    for name in (FACTS_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name} is missing; `rove fit RECIPE --base SUBMISSION ...` makes a whole folder."
            )
    return json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))


def _load_named(context: LoadContext, facts: Mapping[str, Any]) -> Backbone:
    """The base that `fitted.json` names."""
    named = facts["base"]
    folder = Path(__file__).parents[1] / named["name"] if named["shipped"] else context.folder / BASE_FOLDER
    base = Base(named["name"], folder, named["args"], named["shipped"])
    return load_base(base, context.device, context.dtype, context.offline)


def import_model(source: Path) -> Any:
    """The module in the file `source`, under a name of its own: another submission's `model.py` is another module.

    Raises:
        InputError: there is no such file.
    """
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"rove_base_{digest}", source)
    if spec is None or spec.loader is None or not source.is_file():
        raise InputError(f"the base has no {source}; expected a folder with submission.toml and model.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
