"""Images from a run's policy or from a model as it is, written to a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nablaflow.devices import best_device
from nablaflow.diffusion import FLOW_SAMPLERS, SAMPLERS
from nablaflow.errors import UserError, nearest
from nablaflow.evaluation.bank import sample_states, spread
from nablaflow.models import (
    AdapterSettings,
    ModelSource,
    SamplerSettings,
    check_is_there,
    family_of,
    load_model,
    load_pipeline,
    model_source,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import folders_fault
from nablaflow.progress import show
from nablaflow.prompts.sets import load_prompts
from nablaflow.report.pictures import grid, save_picture, to_picture
from nablaflow.runs.checks import check_count, check_decodes, image_bytes
from nablaflow.runs.fitting_sampler import fitting_sampler
from nablaflow.runs.policy import LAST, load_policy
from nablaflow.runs.run import Run
from nablaflow.runs.trust import THE_MODEL
from nablaflow.storage.checkpoint import load_calibration
from nablaflow.storage.lock import alone, is_run
from nablaflow.storage.run_folder import CONFIG, place_fault
from nablaflow.typing import Images

BATCH = 16
EMBEDDED: dict[str, dict[str, Any]] = {
    "nano": {"guidance_scale": 2.0},
    "flow": {"guidance_scale": 2.0, "max_sequence_length": 16},
}
"""How the embedded models are sampled, besides their pipelines' defaults."""
SHEET = Path("sheet", "sheet.png")  # in a folder of its own: a metric reads every image of `out`


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        images: the single ones.
        sheet: all of them on one picture.
    """

    images: list[Path]
    sheet: Path


def _model(
    source: ModelSource | Run,
    prompts: list[str],
    of_model: dict[str, Any],
    of_run: dict[str, Any],
    *,
    trusted: bool,
) -> tuple[PipelineModel, list[str]]:
    """A run's policy, or a model as it is; and what to show with it."""
    here: dict[str, Any] = {}
    if isinstance(source, Run):
        here = {"pipeline": source.live, "method": source.method, "settings": source.settings}
        source = str(source.folder)
    if isinstance(source, str) and _is_run(source):
        if of_model == {"sampler": "euler"}:  # without the noise that it was trained with
            of_model, of_run = {}, {**of_run, **of_model}
        if of_model:
            raise UserError(_not_of_a_run(of_model))
        parts = THE_MODEL if prompts else (*THE_MODEL, "prompts")
        model, config, folder = load_policy(Path(source), parts, trusted=trusted, **here, **of_run)
        if of_run.get("checkpoint", LAST).startswith("step-"):  # one of several, and not alike
            _say_calibrated(folder)
        return model, prompts or load_prompts(config.prompts, Path(), config.seed)
    if of_run:
        moved = of_run.get("settings")
        option = moved[0].partition("=")[0] if moved else f"--{next(iter(of_run))}"
        raise UserError(f"{option}: {source} is no run folder, and only a run has that")
    pipeline = load_pipeline(model_source(source) if isinstance(source, str) else source)
    sampler, told = _sampler(pipeline, source, of_model)
    model = load_model(pipeline, sampler, AdapterSettings(), best_device())
    for line in told:  # which is nothing to say of a model that is refused
        _say(line)
    return model, prompts or ["a circle" if source in EMBEDDED else ""]


def _say_calibrated(checkpoint: Path) -> None:
    if (found := load_calibration(checkpoint)) is not None:
        _say(
            f"{checkpoint.name} is where the run ended once: the policy at strength "
            f"{found['strength']:.3g} of what was trained, as training.calibrate left it"
        )


def _not_of_a_run(of_model: dict[str, Any]) -> str:
    """What is said of an option that is for a model as it is, beside a run."""
    option = next(name for name in of_model if of_model[name] != "euler")
    if option != "sampler":
        return f"--{option}: a run is sampled as it was trained; leave it out"
    _check_known(of_model["sampler"])
    return (
        "--sampler: a run is sampled as it was trained, of flow matching also with euler; leave "
        "it out"
    )


def _check_known(sampler: str | None) -> None:
    known = {*SAMPLERS, *FLOW_SAMPLERS}
    if sampler is not None and sampler not in known:
        raise UserError(f"--sampler: unknown sampler {sampler!r}; {nearest(sampler, known)}")


def _of_a_run(source: ModelSource | Run) -> bool:
    return isinstance(source, Run) or (isinstance(source, str) and _is_run(source))


def _is_run(source: str) -> bool:
    return is_run(Path(source)) or (Path(source) / CONFIG).is_file()


def _sampler(
    pipeline: Any, source: ModelSource, asked: dict[str, Any]
) -> tuple[SamplerSettings, list[str]]:
    """What the pipeline's own call would do, but for the kind of sampler; and lines about that.

    Raises:
        UserError: there is no sampler of the name that is asked for.
    """
    _check_known(asked.get("sampler"))
    settings = family_of(pipeline).defaults_of(pipeline)
    if isinstance(source, str):
        settings |= EMBEDDED.get(source, {})
    settings |= {side: asked[side] for side in ("height", "width") if side in asked}
    name, told = fitting_sampler(pipeline, settings.get("name"), asked.get("sampler"))
    most = pipeline.scheduler.config.get("num_train_timesteps")
    if isinstance(most, int) and 2 <= most < settings["steps"]:
        settings["steps"] = most
        told.append(f"sampled with {most} steps, since its scheduler has no more timesteps")
    return SamplerSettings(**{**settings, "name": name}), told


OPTIONS = {
    "SamplerSettings.": "sampler.",
    "sampler.name=": "--sampler=",
    "sampler.name": "--sampler",
    "sampler.height": "--height",
    "sampler.width": "--width",
}
"""By what a run's settings are called: what they are here."""


@contextmanager
def _by_options() -> Iterator[None]:
    """Within this context a message has the options' names for a run's settings."""
    try:
        yield
    except UserError as error:
        told = str(error)
        for setting, option in OPTIONS.items():
            told = told.replace(setting, option)
        error.args = (told,)
        raise


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def sample_to_folder(
    source: ModelSource | Run,
    prompts: list[str],
    n: int,
    out: Path,
    seed: int,
    *,
    overwrite: bool,
    trusted: bool = False,
    of_model: dict[str, Any] | None = None,
    of_run: dict[str, Any] | None = None,
) -> Written:
    """Write ``n`` images, prompts in turns, and a sheet of all of them to a folder of its own.

    Args:
        source: a run folder, a model folder or hub id, ``nano`` or ``flow``.
        prompts: default: the run's own.
        trusted: whether the user's word is given for what a run asks for.
        of_model: ``sampler``, ``height`` and ``width`` for a model as it is; of a run of flow
            matching the sampler may be ``euler``.
        of_run: ``checkpoint``, ``strength`` and ``settings`` of a run, as
            `nablaflow.runs.policy.load_policy` has them.

    Raises:
        UserError: no such source, no prompts, or images in the way.
    """
    if isinstance(source, str) and not _is_run(source):
        check_is_there(model_source(source))
    check_out(out, overwrite=overwrite)
    named = {"trusted": trusted, "of_model": of_model, "of_run": of_run}
    images, texts = sample_images(source, prompts, n, seed, **named)
    with alone(out):
        check_out(out, overwrite=overwrite)  # another command may have ended meanwhile
        return write_images(images, texts, out)


@torch.no_grad()
def sample_images(
    source: ModelSource | Run,
    prompts: list[str],
    n: int,
    seed: int,
    *,
    trusted: bool = False,
    of_model: dict[str, Any] | None = None,
    of_run: dict[str, Any] | None = None,
) -> tuple[Images, list[str]]:
    """``n`` images, prompts in turns, and the prompt of each; as `sample_to_folder`."""
    with nullcontext() if _of_a_run(source) else _by_options():
        model, texts = _model(source, prompts, of_model or {}, of_run or {}, trusted=trusted)
        check_decodes(model)
    check_count("--n", n, 2 * image_bytes(model))
    note = model.note_on(texts, trains=False)
    if note is not None:
        _say(note)
    with folders_fault(model), show() as progress:
        states = sample_states(
            model,
            texts,
            n,
            seed=seed,
            batch=BATCH,
            purpose="sample",
            on_progress=progress.start("sample", n),
        )
        parts = states.to(model.device).split(BATCH)
        images = torch.cat([model.decode(part).cpu() for part in parts])
    strength = (of_run or {}).get("strength", 1.0)
    if not images.isfinite().all() and strength > 1.0:
        raise UserError(
            f"--strength: with {strength:g} of what was trained the images are not finite; use less"
        )
    if not images.isfinite().all():
        raise UserError(
            f"{source}: its images are not finite; its weights or its scheduler are at fault, get "
            "it again"
        )
    return images, [texts[which] for which in spread(n, len(texts)).tolist()]


def write_images(images: Images, prompts: list[str], out: Path) -> Written:
    """Write each to a file, and a sheet of all.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        return _write(images, prompts, out)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out} ({error.strerror})") from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether images can be written there."""
    fault = place_fault(out)
    if fault is not None:
        raise UserError(f"--out: {fault}; give another folder")
    if out.is_dir() and not overwrite and (any(out.glob("*.png")) or (out / SHEET).exists()):
        raise UserError(f"--out: {out} holds images already; use --overwrite or another folder")


def _write(images: Images, prompts: list[str], out: Path) -> Written:
    sheet = out / SHEET
    sheet.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        paths.append(out / image_name(index, prompt))
        save_picture(to_picture(image), paths[-1])
    save_picture(grid(images, columns=min(8, len(images))), sheet)
    return Written(paths, sheet)


def image_name(index: int, prompt: str) -> str:
    """Of an image's file: its place, and the words of its prompt."""
    of_files = sys.getfilesystemencoding()
    prompt = prompt.encode(of_files, "replace").decode(of_files)  # ? for what no name can hold
    words = "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60]
    words = words.encode()[:120].decode(errors="ignore")  # a name has room for 255 bytes
    return f"{index:04d}-{words or 'image'}.png"
