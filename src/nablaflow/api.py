"""What `import nablaflow as nf` does: `nf.align`, `nf.evaluate`, `nf.sample`, `nf.compare`."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from nablaflow.comparison import Outcome, compare_asked
from nablaflow.comparison.writing import write_outcome
from nablaflow.config.arguments import (
    CompareArguments,
    EvaluateArguments,
    SampleArguments,
    checked,
    folder_of_run,
    names,
    texts,
)
from nablaflow.config.defaults import DEFAULTS
from nablaflow.config.overrides import merge, refuse_idle_flow
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.config.settings import (
    EvaluationSettings,
    GuardSettings,
    OptimizerSettings,
    TrainingSettings,
)
from nablaflow.config.suggestions import suggest
from nablaflow.errors import UserError, in_python, nearest
from nablaflow.methods import Method
from nablaflow.methods.own import load_method
from nablaflow.models import (
    AdapterSettings,
    AnyPipeline,
    FlowSettings,
    LivePipeline,
    ModelSource,
    SamplerSettings,
    hand_over,
)
from nablaflow.places import at_home
from nablaflow.prompts.source import absolute
from nablaflow.report.pictures import to_picture
from nablaflow.rewards import CALLABLE, NamedReward, load
from nablaflow.runs.align import run
from nablaflow.runs.callback import OnUpdate
from nablaflow.runs.evaluate import evaluate_run
from nablaflow.runs.run import Run
from nablaflow.runs.sample import check_out, sample_images, write_images
from nablaflow.runs.surroundings import surrounded
from nablaflow.settings import Settings
from nablaflow.typing import Reward

Model = str | Path | AnyPipeline
"""``nano``, ``flow``, a diffusers folder, a hub id, or a pipeline that is in memory."""
Prompts = Iterable[str] | str | Path | Mapping[str, str] | None
Group = Mapping[str, Any] | Literal["default"]
"""Settings to change in the defaults, as a recipe has them; or the defaults."""


@in_python
@surrounded
def align(
    *,
    model: Model = "nano",
    model_lora: str | Path | None = None,
    model_lora_scale: float = 1.0,
    reward: str | Mapping[str, Any] | Reward,
    prompts: Prompts,
    method: Method | str | Mapping[str, Any],
    output_dir: str | Path,
    updates: int | None = None,
    seed: int = 0,
    sampler: SamplerSettings | Group = "default",
    adapter: AdapterSettings | Group = "default",
    flow: FlowSettings | Group | None = "default",
    optimizer: OptimizerSettings | Group = "default",
    training: TrainingSettings | Group = "default",
    evaluation: EvaluationSettings | Group = "default",
    guard: GuardSettings | Group | None = "default",
    on_update: OnUpdate | None = None,
    overwrite: bool = False,
    resume: bool = False,
    steps: int | None = None,
    **unknown: Any,
) -> Run:
    """Align a model with a reward and write a run folder.

    A group of settings is an object, such as ``SamplerSettings(steps=50)``, taken as it is; or a
    mapping, such as ``{"steps": 50}``, that changes the defaults of `nablaflow.config.defaults`.

    Args:
        model: ``nano``, ``flow``, a diffusers folder, a hub id, or a diffusers pipeline that is in
            memory, which stays as it is.
        model_lora: a LoRA that is fused into the model first; the two are then the reference.
        model_lora_scale: strength of that.
        reward: name, ``file.py:function``, sum of those, a mapping with ``name`` and settings, or
            a callable ``(images, prompts)``.
        prompts: a list, a file, a set by name, or a mapping of source, column and split; None for
            an unconditional model.
        method: an object such as ``ResidualNablaDB(beta=100.0)``, a name, or a mapping.
        output_dir: the run folder.
        updates: optimizer updates; 200 unless ``training`` has them.
        seed: of training: noise, prompt order, chosen transitions.
        sampler: the reverse process.
        adapter: the weights to train.
        flow: the flow network; None is none.
        optimizer: AdamW.
        training: the loop.
        evaluation: the measurement at the end.
        guard: watches for reward hacking; None is none.
        on_update: told the record of each update, as metrics.jsonl has it. True ends training
            there; the run is then measured and saved as usual.
        overwrite: replace the run in ``output_dir``.
        resume: go on from its last checkpoint.
        steps: the older name of ``updates``.

    Raises:
        UserError: a mistake in any of these, or ``on_update`` raised; the run then has a
            checkpoint.
        Interrupted: after Ctrl-C, with a checkpoint.
    """
    _refuse_unknown(unknown)
    given, (name, live) = load(reward), _model(model)
    values: dict[str, Any] = {
        "model": name,
        "model_lora": _text_of(model_lora),
        "model_lora_scale": model_lora_scale,
        "reward": reward if isinstance(reward, str | Mapping) else f"{CALLABLE}{given.name}",
        "prompts": absolute(_texts(prompts), Path()),
        "method": method,
        "output_dir": _text_of(output_dir),
        "seed": seed,
    }
    groups = {
        "sampler": sampler,
        "adapter": adapter,
        "flow": flow,
        "optimizer": optimizer,
        "training": _with_updates(training, _updates(updates, steps)),
        "evaluation": evaluation,
        "guard": guard,
    }
    said = {name: group for name, group in groups.items() if group != "default"}
    config = parse_config(merge(merge(DEFAULTS, values), said), load_method)
    _refuse_idle(config, flow, optimizer)
    return run(
        config, resume=resume, overwrite=overwrite, reward=given, pipeline=live, on_update=on_update
    )


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    for word in unknown:
        hint = nearest(word, inspect.signature(align).parameters)
        if not hint.startswith("did you mean"):
            hint = suggest(word, Config)
        raise UserError(f"{word}: nablaflow.align has no such argument; {hint}")


def _text_of(path: Any) -> Any:
    """A path as text; what is none is for the settings' own check."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _texts(prompts: Any) -> Any:
    """Prompts as a recipe has them; what are none are for the settings' own check."""
    if isinstance(prompts, Set):
        raise UserError(
            "prompts: a set has another order in every session, and so would the run; give a list"
        )
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return _text_of(prompts)
    return list(prompts)


def _refuse_idle(config: Config, flow: Any, optimizer: OptimizerSettings | Group) -> None:
    """Who gives a setting of the flow network in a call wants one."""
    if flow != "default":
        refuse_idle_flow(config, ("flow",), flow)
    if isinstance(optimizer, Settings):
        optimizer = optimizer.model_dump(include=optimizer.model_fields_set)
    for name, value in optimizer.items() if isinstance(optimizer, Mapping) else ():
        refuse_idle_flow(config, ("optimizer", name), value)


def _model(model: Model) -> tuple[str, LivePipeline | None]:
    """Its name, and the pipeline if it is one."""
    if isinstance(model, str):
        return model, None
    if isinstance(model, Path):
        return str(at_home(model).absolute()), None
    live = hand_over(model)
    return live.name, live


def _updates(updates: int | None, steps: int | None) -> int | None:
    if steps is None:
        return updates
    if updates is not None:
        raise UserError("steps: the older name of updates, which is given as well; leave it out")
    print(
        f"steps: is called updates now, since a sampler has steps too; write updates={steps}",
        file=sys.stderr,
    )
    return steps


def _with_updates(training: TrainingSettings | Group, updates: int | None) -> Any:
    if updates is None:
        return training
    whole = isinstance(training, Settings)
    if not (whole or training == "default" or isinstance(training, Mapping)):
        return training  # which the settings' own check refuses
    said = training.model_fields_set if whole else training
    if training != "default" and "updates" in said:
        raise UserError("updates: training has them as well; give one of the two")
    if training == "default":
        return {"updates": updates}
    return {**(training.model_dump() if whole else training), "updates": updates}


@in_python
@surrounded
def evaluate(
    of: Run | str | Path,
    *,
    n: int | None = None,
    features: str = "pixels",
    metrics: Iterable[str] | str | None = None,
    only_last: bool = False,
    prompts: Prompts = None,
    reward: str | Mapping[str, Any] | Reward | None = None,
    model: Model | None = None,
    trusted: bool = False,
) -> dict[str, Any]:
    """Measure a run's checkpoints again; writes nothing.

    Args:
        of: a run, or its folder.
        n: images of each model; default: as many as the run's own evaluation.
        features: what images are compared by, see docs/metrics.md.
        metrics: names; default: those that ``n`` is enough for.
        only_last: leave the checkpoints before the last out.
        prompts: in place of the run's own.
        reward: in place of the run's own.
        model: the pipeline that the run was begun with, or its folder, where the run has no name
            for it; its weights are checked.
        trusted: whether your word is given for the code, hosts and files that the run asks for.

    Returns:
        What summary.json has of figures, and the protocol's under ``protocol``.

    Raises:
        UserError: a mistake in any of these.
    """
    asked = checked(EvaluateArguments, n=n, features=features, metrics=names(metrics))
    folder, function, live, kind = _parts(of)
    settings = of.settings if isinstance(of, Run) else []
    if isinstance(reward, str | Mapping):
        settings.append(f"reward={json.dumps(reward)}")
        function = None
    elif reward is not None:
        function = load(reward)
    if isinstance(model, str | Path):
        settings.append(f"model={json.dumps(str(model))}")
        live = None
    elif model is not None:
        live = hand_over(model)
    return evaluate_run(
        folder,
        asked.n,
        features=asked.features,
        metrics=asked.metrics,
        only_last=only_last,
        prompts=_texts(prompts),
        settings=settings,
        trusted=trusted,
        reward=function,
        pipeline=live,
        method=kind,
    )


def _parts(
    of: Run | str | Path,
) -> tuple[Path, NamedReward | None, LivePipeline | None, type[Method] | None]:
    """The folder; and of what was handed over in this session reward, pipeline, method."""
    if isinstance(of, Run):
        return of.folder, of.reward, of.live, of.method
    return folder_of_run(of), None, None, None


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
    folder = None if out is None else at_home(out)
    if folder is not None:
        check_out(folder, overwrite=overwrite)
    given = {"sampler": sampler, "height": height, "width": width}
    given |= {"checkpoint": checkpoint, "strength": strength}
    asked = checked(SampleArguments, n=n, seed=seed, **given)
    of_model = _given(sampler=asked.sampler, height=asked.height, width=asked.width)
    of_run = _given(checkpoint=asked.checkpoint, strength=asked.strength)
    source = of if isinstance(of, Run) else _source(of)
    own = {"trusted": trusted, "of_model": of_model, "of_run": of_run}
    images, of_images = sample_images(source, texts(prompts), asked.n, asked.seed, **own)
    if folder is not None:
        write_images(images, of_images, folder)
    return [to_picture(image) for image in images]


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _source(model: Model) -> ModelSource:
    name, live = _model(model)
    return live or name


@in_python
@surrounded
def compare(
    *runs: Run | str | Path,
    methods: Iterable[str] | str = (),
    reward: Iterable[str] | str = (),
    seeds: int | None = None,
    minutes: float | None = None,
    beta: float | None = None,
    n: int | None = None,
    held_out: str | None = None,
    metrics: Iterable[str] | str = (),
    out: str | Path = "runs/comparison",
    overwrite: bool = False,
    trusted: bool = False,
) -> list[Outcome]:
    """Hold runs, or methods that are trained for the same time, against the exact tilt.

    What is in the folder already is not run again.

    Args:
        runs: of one model, one reward, one beta and the same prompts; or none.
        methods: names, or all; default: a few. They train on the embedded model.
        reward: of the methods, one or several: an outcome each; default: warmth.
        seeds: runs of each method; default: 3.
        minutes: of training, each; default: 2.
        beta: the tilt of the methods; default: where a third of the bank counts.
        n: images that are measured.
        held_out: a reward to measure only; default, on the embedded model: is the shape shown.
        metrics: further figures, by name, as `evaluate` has them.
        out: folder for figures, tables and pictures, and for the methods' runs.
        overwrite: replace figures of other settings there.
        trusted: whether your word is given for what the runs ask for.

    Returns:
        An outcome for each reward; `Outcome.rows` has the table.

    Raises:
        UserError: a mistake in any of these.
    """
    folder = at_home(out)
    lists = {"methods": names(methods), "reward": names(reward), "metrics": names(metrics)}
    given = {"seeds": seeds, "minutes": minutes, "beta": beta, "n": n, "held_out": held_out}
    asked = checked(CompareArguments, **lists, **given)
    outcomes = compare_asked(
        [_parts(run)[0] for run in runs],
        asked.methods,
        asked.reward,
        folder,
        training=_given(seeds=asked.seeds, minutes=asked.minutes, beta=asked.beta),
        n=asked.n,
        held_out=asked.held_out,
        metrics=asked.metrics,
        overwrite=overwrite,
        trusted=trusted,
    )
    for outcome in outcomes:
        write_outcome(folder, outcome)
    return outcomes
