"""What a run folder asks for that only the user may give: code, hosts, variables, files outside.

A run folder may come from somebody else, so it is data. Its config.yaml may name a Python file as
the reward, an address to send images and prompts to, an environment variable to send along, a file
to read prompts from. The user's word for those is the command that trained the run here, which is
remembered outside the run; or ``reward=…`` now; or ``--trust-run``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nablaflow import nano
from nablaflow.config.named_method import FindMethod
from nablaflow.config.overrides import parse_override
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.methods import Method
from nablaflow.methods.own import load_method, own_name
from nablaflow.prompts.source import FUNCTION, HUB, SETS
from nablaflow.rewards import CALLABLE
from nablaflow.rewards.custom import place_of
from nablaflow.rewards.references import CODE, FILE, HOST, Reference, is_path, references
from nablaflow.storage.files import what_failed, write_whole
from nablaflow.storage.lock import MARKER
from nablaflow.storage.run_folder import CHECKPOINTS, CONFIG, METRICS, SUMMARY

THE_MODEL = ("model", "model_lora")
"""What is read to have a run's reference."""
ALL = (
    *("method", *THE_MODEL, "adapter.start", "reward", "prompts"),
    *("evaluation", "guard", "training"),
)


def asked_for(config: Config, parts: Collection[str] = ALL) -> list[Reference]:
    """Everything outside itself that a configuration reaches for.

    Args:
        parts: its settings and groups that will be used.
    """
    found: list[Reference] = []
    place = place_of(type(config.method)) if "method" in parts else None
    if place is not None:
        found.append(Reference(CODE, place))
    if "reward" in parts:
        found += references(config.reward)
    if "model" in parts and config.model not in nano.MODELS and is_path(config.model, or_name=True):
        found.append(Reference(FILE, config.model))
    if "model_lora" in parts and config.model_lora is not None:
        found.append(Reference(FILE, config.model_lora))
    if "adapter.start" in parts and config.adapter.start is not None:
        found.append(Reference(FILE, config.adapter.start))
    sources: list[Any] = [config.prompts] if "prompts" in parts else []
    if "evaluation" in parts:
        sources.append(config.evaluation.prompts)
    if "guard" in parts and config.guard is not None:
        sources.append(config.guard.prompts)
        held_out = config.guard.held_out
        found += [] if held_out is None else references(held_out.reward)
    found += [part for source in sources for part in _of_prompts(source)]
    if "training" in parts:  # what a tracker is told leaves this machine, but for tensorboard's
        trackers = set(config.training.trackers) - {"tensorboard"}
        found += [Reference(HOST, f"of the tracker {name}") for name in trackers]
    return sorted(set(found))


def _of_prompts(source: Any) -> Iterator[Reference]:
    if isinstance(source, Mapping):
        source = source["source"]
    if not isinstance(source, str) or source.startswith(HUB) or source in SETS:
        return
    if source.startswith(FUNCTION):
        yield Reference(CODE, source.removeprefix(FUNCTION))
    else:
        yield Reference(FILE, source)


def paths_read(config: Config) -> list[Path]:
    """The files and folders that a configuration reads, links followed."""
    return [part.path for part in asked_for(config) if part.path is not None]


def check_trusted(
    config: Config, run: Path, parts: Collection[str] = ALL, *, trusted: bool = False
) -> None:
    """Refuse what a run asks for without the user's word; say what a word was given for.

    Args:
        run: its folder, whose own files it may read.
        parts: groups of the configuration that are the run's, and will be used.
        trusted: whether the user gave ``--trust-run``.

    Raises:
        UserError: it lists what the run asks for.
    """
    asked = [part for part in asked_for(config, parts) if not _is_inside(part, run)]
    _require_word(asked, run, trusted=trusted)


class NeedsWord(UserError):
    """What a run asks for needs the user's word."""


def methods_of(run: Path, *, trusted: bool, known: type[Method] | None = None) -> FindMethod:
    """How a run's own method is found: its file is run with the user's word only.

    Args:
        known: the class of the method that was handed over, for which no file is run.
    """

    def find(spec: str) -> type[Method]:
        if known is not None and spec == own_name(known):
            return known
        if not spec.startswith(CALLABLE):  # nothing can be made of such a name
            _require_word([Reference(CODE, spec)], run, trusted=trusted)
        return load_method(spec)

    return find


def methods_of_recipe(recipe: Path | None, *, trusted: bool) -> FindMethod:
    """The same for a recipe, which is the user's own word unless it is a run's config.yaml."""
    if recipe is None or not _is_of_run(recipe):
        return load_method
    return methods_of(recipe.parent, trusted=trusted)


def _require_word(asked: list[Reference], run: Path, *, trusted: bool) -> None:
    if not asked or _is_remembered(asked):
        return
    listed = ", ".join(map(str, asked))
    if trusted:
        print(f"{run} is trusted with: {listed}", file=sys.stderr)
        return
    raise NeedsWord(
        f"{run} asks for {listed}; that needs your word: look at its config.yaml, then give "
        "--trust-run, or what to use instead (reward=…, --prompts)"
    )


def _is_inside(part: Reference, run: Path) -> bool:
    inside = part.path is not None and part.path.is_relative_to(run.resolve())
    return inside and part.kind == FILE


def check_recipe(
    recipe: Path | None, config: Config, overrides: Sequence[str], *, trusted: bool
) -> None:
    """A recipe is the user's own word, unless it is the config.yaml of a run folder.

    Raises:
        UserError: as `check_trusted`.
    """
    if recipe is None or not _is_of_run(recipe):
        return
    given = [".".join(path) for path, _ in map(parse_override, overrides)]
    own = {part for part in ALL if not any(f"{part}.".startswith(f"{name}.") for name in given)}
    check_trusted(config, recipe.parent, own, trusted=trusted)


def check_goes_on_here(recipe: Path | None, config: Config, overrides: Sequence[str]) -> None:
    """A run that goes on by its own config.yaml is the one in that folder, which may have moved.

    Raises:
        UserError: the file names another folder, which may be a run's too; it says how to go on.
    """
    given = {path for path, _ in map(parse_override, overrides)}
    if recipe is None or ("output_dir",) in given or not _is_of_run(recipe):
        return
    if config.output_dir.resolve() != recipe.parent.resolve():
        raise UserError(
            f"--resume: {recipe} is of the run in {recipe.parent}, and its output_dir is "
            f"{config.output_dir}; give output_dir={recipe.parent}, or the one that is meant"
        )


def _is_of_run(recipe: Path) -> bool:
    beside = (MARKER, METRICS, SUMMARY, CHECKPOINTS)
    return recipe.name == CONFIG and any((recipe.parent / name).exists() for name in beside)


def parts_of_run(settings: Sequence[str], others: Sequence[str] = ("reward",)) -> set[str]:
    """The parts that `nablaflow eval` and `compare` use and that no setting of the user replaces.

    Args:
        others: what may be given in place of the run's own.

    Raises:
        UserError: a setting is of something else.
    """
    replaced = set()
    for text in settings:
        path, _ = parse_override(text)
        if path[0] not in others:
            may = " or ".join(f"{name}=…" for name in others)
            again = f"; train it with --resume {text} to measure it so"
            raise UserError(
                f"{'.'.join(path)}: only {may} can be given beside a run; the rest is its own"
                f"{again * (path[0] == 'evaluation' and path[-1] != 'hold_out')}"
            )
        if len(path) == 1:
            replaced.add(path[0])
    return {*THE_MODEL, "reward", "prompts", "evaluation"} - replaced


# --- what the user gave word for, here ------------------------------------------------------------


def remember(config: Config) -> None:
    """The user's own settings are the word for all that they ask for, as long as it is the same."""
    marks = sorted(map(_mark, asked_for(config)))
    if not marks:
        return
    text = json.dumps(marks)
    folder = _words()
    try:
        if folder is None:
            raise OSError(errno.ENOENT, "there is no home folder")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json", text)
    except OSError as error:
        print(
            f"cannot keep your word in {folder or '~/.local/state'} ({what_failed(error)}): other "
            "commands will ask for --trust-run; XDG_STATE_HOME may name another folder",
            file=sys.stderr,
        )


def _is_remembered(asked: list[Reference]) -> bool:
    """Whether all of it, together, is part of what one run was trained with."""
    wanted = set(map(_mark, asked))
    return any(wanted <= known for known in _remembered())


def _remembered() -> Iterator[set[str]]:
    folder = _words()
    names: list[str] = []
    with suppress(OSError):  # none is there, or none of the user's: the word is asked for
        names = [] if folder is None else sorted(os.listdir(folder))
    for path in (Path(str(folder), name) for name in names if name.endswith(".json")):
        with suppress(OSError, ValueError, TypeError):
            yield set(json.loads(path.read_text(encoding="utf-8")))


def _mark(part: Reference) -> str:
    return hashlib.sha256(part.identity.encode()).hexdigest()


def _words() -> Path | None:
    """In the user's own folder for what programs remember; a cache may be shared with others.

    None where the system knows of no home folder, as for a user that a container was given.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not given.is_absolute():  # which the standard has ignored: it would be another by folder
        try:
            given = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    return given / "nablaflow" / "words"
