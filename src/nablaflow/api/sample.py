"""`nf.sample`: images of a run or of a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL.Image import Image

from nablaflow.api.given import Model, model_of, those_given
from nablaflow.config.arguments import SampleArguments, checked, place, texts
from nablaflow.errors import in_python
from nablaflow.models import ModelSource
from nablaflow.report.pictures import to_picture
from nablaflow.runs.run import Run
from nablaflow.runs.sample import check_out, sample_images, write_images
from nablaflow.surroundings import surrounded


@in_python
@surrounded
def sample(
    of: Run | Model,
    prompts: Iterable[str] | str | None = None,
    *,
    n: int = 8,
    out: str | Path | None = None,
    seed: int = 0,
    checkpoint: str | None = None,
    strength: float | None = None,
    sampler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    overwrite: bool = False,
    trusted: bool = False,
) -> list[Image]:
    """Images from a run's policy, or from a model as it is.

    Args:
        of: a run or its folder; or a model, as in `align`.
        prompts: in turns; default: the run's own.
        n: images in all.
        out: a folder to write them to, with a sheet; default: none.
        seed: of the noise.
        checkpoint: of a run: last, best, step-12 or reference; default: last.
        strength: of a run: how much of what was trained; default: 1.
        sampler: of a model: ddim, ddpm, sde-dpmsolver++ or euler; default: what fits it.
        height: of a model's image, pixels; and ``width``.
        overwrite: replace images in ``out``.
        trusted: whether your word is given for what a run asks for.

    Raises:
        UserError: a mistake in any of these.
    """
    folder = None if out is None else place("out", out)
    if folder is not None:
        check_out(folder, overwrite=overwrite)
    given = {"sampler": sampler, "height": height, "width": width}
    given |= {"checkpoint": checkpoint, "strength": strength}
    asked = checked(SampleArguments, n=n, seed=seed, **given)
    of_model = those_given(sampler=asked.sampler, height=asked.height, width=asked.width)
    of_run = those_given(checkpoint=asked.checkpoint, strength=asked.strength)
    source = _source(of)
    own = {"trusted": trusted, "of_model": of_model, "of_run": of_run}
    images, of_images = sample_images(source, texts(prompts), asked.n, asked.seed, **own)
    if folder is not None:
        write_images(images, of_images, folder)
    return [to_picture(image) for image in images]


def _source(of: Run | Model) -> Run | ModelSource:
    if isinstance(of, Run):
        of.check_is_there()
        return of
    name, live = model_of(of)
    return live or name
