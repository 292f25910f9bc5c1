"""Finding a submission and reading its manifest, without importing its code.

A submission is named in one of four ways: a shipped one's name (`tiny`), the name of an entry point in the group
`rove.submissions`, a folder with `submission.toml` and `model.py`, or `path.py:load` for a function in a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import InputError, UsageError, unknown_name
from bench.recipes import Recipe, read_recipe
from bench.records import Manifest, digest_of, read_toml
from bench.store import sha256_of

ENTRY_POINTS = "rove.submissions"
MANIFEST = "submission.toml"


@dataclass(frozen=True)
class Submission:
    """A submission as found.

    Args:
        manifest: of its `submission.toml`, or a bare one where there is none.
        folder: where its files lie.
        module: the file that defines `function`.
        function: takes a `LoadContext`, returns an `Encoder`.
        args: the manifest's defaults with the user's over them.
        fingerprint: hex sha256, taken when it was found, over its files, the function, its arguments, the files
            that those name and the code of all shipped submissions; a changed byte is another submission.
        import_name: of the module, if it is part of an installed package.
    """

    manifest: Manifest
    folder: Path
    module: Path
    function: str
    args: Mapping[str, str]
    fingerprint: str = ""
    import_name: str = ""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def is_folder(self) -> bool:
        """Whether the whole folder is the submission, not one file of it."""
        return (self.folder / MANIFEST).exists()

    @property
    def label(self) -> str:
        """Its name, and the arguments that make it a different model from the default."""
        changed = {key: value for key, value in self.args.items() if self.manifest.args.get(key) != value}
        return "-".join([self.name, *(_slug(Path(value).name) for _, value in sorted(changed.items()))])


def find_submission(reference: str, args: Mapping[str, str] | None = None) -> Submission:
    """The submission that `reference` names, with `args` over its manifest's defaults.

    Raises:
        UsageError: there is no such submission, or it does not take such an argument.
        InputError: its manifest or its files are not as they must be.
    """
    found = _locate(reference)
    given = dict(args or {})
    unknown = sorted(set(given) - set(found.manifest.args))
    if unknown and found.is_folder:
        known = ", ".join(sorted(found.manifest.args)) or "none"
        raise UsageError(f"{found.name} takes no --model-arg {unknown[0]}; its [args] are: {known}.")
    complete = replace(found, args={**found.manifest.args, **given})
    return replace(complete, fingerprint=take_fingerprint(complete))


def take_fingerprint(submission: Submission) -> str:
    """The fingerprint of a submission as its files are now, and as they are on this machine."""
    return digest_of(digest_own(submission), digest_shared_code())


def shipped_submissions() -> dict[str, Path]:
    """Folders of the submissions that come with Rove, by name."""
    folders = sorted(_submissions_folder().iterdir())
    return {folder.name: folder for folder in folders if (folder / MANIFEST).is_file()}


def list_submissions() -> dict[str, Manifest]:
    """Manifests of everything that `rove run NAME` finds by name."""
    manifests = {name: read_manifest(folder) for name, folder in shipped_submissions().items()}
    for name, entry in _entry_points().items():
        try:
            manifests[name] = _from_entry_point(entry).manifest
        except InputError as error:
            manifests[name] = Manifest(name=_slug(name), summary=f"broken: {error}")
    return manifests


def list_recipes() -> dict[str, Recipe]:
    """Recipes by name: every folder beside the shipped submissions that has a `fit.py`, itself a submission or not.

    Raises:
        InputError: one of them does not state what a recipe must.
    """
    return {name: read_recipe(source) for name, source in _recipe_sources().items()}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is no such recipe.
        InputError: it does not state what a recipe must.
    """
    sources = _recipe_sources()
    if name not in sources:
        raise unknown_name("recipe", name, sources, "rove list recipes")
    return read_recipe(sources[name])


def scaffold(name: str, folder: Path) -> Path:
    """Writes a submission folder to start from, and returns it; it passes `rove check` as it is.

    Raises:
        UsageError: the name is not allowed, or the folder exists.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        raise UsageError(
            f"'{name}' is no name for a submission; expected lower-case letters, digits, '-', '_' and '.'."
        )
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --output.")
    template = _submissions_folder() / "scaffold"
    folder.mkdir(parents=True)
    for source in sorted(template.glob("*.*")):
        text = source.read_text(encoding="utf-8").replace("{{name}}", name)
        (folder / source.name.removesuffix(".template")).write_text(text, encoding="utf-8")
    return folder


def read_manifest(folder: Path) -> Manifest:
    """The validated manifest of `folder`.

    Raises:
        InputError: the file is missing, is not TOML, or a field is wrong; the message names file and field.
    """
    if not os.path.lexists(folder / MANIFEST):
        raise InputError(f"{folder} has no {MANIFEST}; `rove new NAME` writes one to start from.")
    return read_toml(folder / MANIFEST, Manifest)


def _submissions_folder() -> Path:
    spec = importlib.util.find_spec("submissions")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package `submissions` is not installed; install rove-bench again.")
    return Path(spec.submodule_search_locations[0])


def _recipe_sources() -> dict[str, Path]:
    return {source.parent.name: source for source in sorted(_submissions_folder().glob("*/fit.py"))}


def _locate(reference: str) -> Submission:
    path, separator, function = reference.rpartition(":")
    if separator and path.endswith(".py"):
        return _from_file(Path(path), function)
    is_path = "/" in reference or reference.startswith(".")
    if is_path and not os.path.isdir(reference):
        raise UsageError(f"no folder {reference}; expected one with {MANIFEST} and model.py.")
    shipped, entries = shipped_submissions(), _entry_points()
    if reference in shipped:
        return _from_folder(shipped[reference])
    if reference in entries:
        return _from_entry_point(entries[reference])
    if is_path or os.path.isfile(os.path.join(reference, MANIFEST)):
        return _from_folder(Path(reference).resolve())
    raise unknown_name("submission", reference, [*shipped, *entries], "rove list submissions")


def _from_folder(folder: Path) -> Submission:
    manifest = read_manifest(folder)
    module = folder / "model.py"
    if not module.is_file():
        raise InputError(f"{folder} has no model.py; expected one that defines load(context).")
    return Submission(manifest, folder, module, "load", manifest.args)


def _from_file(module: Path, function: str) -> Submission:
    if not os.path.isfile(module):
        raise UsageError(f"no file {module}; expected path.py:load.")
    if not function.isidentifier():
        raise UsageError(f"'{function}' is no function name; expected path.py:load.")
    module = module.resolve()
    return Submission(_bare_manifest(module.stem), module.parent, module, function, {})


def _from_entry_point(entry: importlib.metadata.EntryPoint) -> Submission:
    try:
        spec = importlib.util.find_spec(entry.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"entry point {entry.name} names the module {entry.module}, which is not installed.")
    module = Path(spec.origin)
    stated = (module.parent / MANIFEST).is_file()
    manifest = read_manifest(module.parent) if stated else _bare_manifest(entry.name)
    function = entry.attr or "load"
    return Submission(manifest, module.parent, module, function, manifest.args, import_name=entry.module)


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def digest_own(submission: Submission) -> str:
    """Hex sha256 over a submission's files, its function, its arguments and the files that those name."""
    digest = hashlib.sha256(json.dumps([submission.function, dict(sorted(submission.args.items()))]).encode())
    named = [_files_of(name, submission) for name in sorted(submission.args)]
    own = _files(submission.folder) if submission.is_folder else [submission.module]
    for path in [*own, *(path for files in named for path in files)]:
        digest.update(path.name.encode() + b"\0" + sha256_of(path).encode())
    return digest.hexdigest()


def digest_shared_code() -> str:
    """Hex sha256 over the Python files of all shipped submissions, which those of a fitted one import."""
    return _digest_code([_submissions_folder()])


def digest_recipe(recipe: Recipe) -> str:
    """Hex sha256 over the Python files of a recipe, and over those that all recipes share."""
    return _digest_code([recipe.source.parent, _submissions_folder() / "backbones"])


def _digest_code(folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in _files(folder):
            if path.suffix == ".py":
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + sha256_of(path).encode())
    return digest.hexdigest()


def resolve_args(submission: Submission) -> dict[str, str]:
    """Its arguments as its process gets them: what names a file, or by a path a submission's folder, is absolute."""
    return {name: _resolve(name, submission) for name in submission.args}


def _resolve(name: str, submission: Submission) -> str:
    value = submission.args[name]
    path, folder = os.path.expanduser(value), _named_folder(name, submission)
    return os.path.realpath(path) if os.path.isfile(path) else value if folder is None else str(folder)


def _named_folder(name: str, submission: Submission) -> Path | None:
    """The submission's folder that an argument is the path of, None if it is none.

    A default of the manifest is a path from the manifest, any other from where the command is run. A name without a
    stroke is no path, here as in `find_submission`.
    """
    value = submission.args[name]
    if "/" not in value:
        return None
    start = submission.folder if submission.manifest.args.get(name) == value else Path()
    folder = (start / os.path.expanduser(value)).resolve()
    return folder if os.path.isfile(folder / MANIFEST) else None


def _files_of(name: str, submission: Submission) -> Iterable[Path]:
    """The files that an argument names: one, those of a submission's folder, or of a shipped submission."""
    value = submission.args[name]
    path = os.path.expanduser(value)
    if os.path.isfile(path):
        return [Path(path)]
    folder = _named_folder(name, submission) or shipped_submissions().get(value)
    return _files(folder) if folder else []


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _bare_manifest(name: str) -> Manifest:
    """Of a submission without a `submission.toml`, by the name of what it was found as."""
    return Manifest(name=_slug(name).lstrip("_")[:64] or "model")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.")
