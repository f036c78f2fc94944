"""A comparison of runs that exist: every checkpoint of each, measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nablaflow import nano
from nablaflow.comparison.curve import curve_of_run
from nablaflow.comparison.gauge import Gauge, scored_bank
from nablaflow.comparison.outcome import Outcome, outcome_of, tilt_curve
from nablaflow.comparison.race import held_out_reward
from nablaflow.config.named_method import method_settings
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.evaluation.policy_state import put_policy
from nablaflow.models.file_mark import is_of_files
from nablaflow.progress import Progress
from nablaflow.prompts.sets import load_prompts
from nablaflow.runs.accelerator import fresh_accelerator
from nablaflow.runs.evaluate import with_images
from nablaflow.runs.pretrained import check_may_be_given, dtype_of
from nablaflow.runs.saved_config import load_run_config
from nablaflow.runs.setup import Parts, prepare
from nablaflow.runs.trust import THE_MODEL, check_trusted, methods_of, parts_of_run
from nablaflow.storage.checkpoint import load_calibration, load_policy, load_trained
from nablaflow.storage.manifest import DamagedCheckpoint, list_checkpoints, read_manifest
from nablaflow.storage.run_folder import CONFIG
from nablaflow.storage.study import check_writable
from nablaflow.storage.whole import each_whole, steady

SMALLEST_BANK = 4  # times the images that are measured, for runs that have no bank of their own


def compare_runs(
    folders: Sequence[Path],
    out: Path,
    progress: Progress,
    *,
    n: int | None,
    held_out: str | None,
    metrics: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    trusted: bool = False,
) -> Outcome:
    """Measure the checkpoints of runs of one model, one reward and the same prompts.

    Args:
        n: images that are measured each time; None: as many as the first run's evaluation.
        held_out: spec of a reward that nothing was trained on; None: for the embedded model
            whether the shape is shown, for another model none.
        metrics: further figures, by name; None: those of the first run's evaluation.
        settings: ``reward=…``, in place of the runs' own; ``model=…`` and ``model_lora=…``, where
            theirs are now.
        trusted: whether the user's word is given for what the runs ask for.

    Raises:
        UserError: a folder is no run, or has no checkpoint; or the runs are of different models,
            prompts, samplers, rewards or beta.
    """
    _check_once(folders)
    plain = [_config(folder, metrics, settings, trusted=trusted) for folder in folders]
    configs = plain if n is None else [with_images(config, n) for config in plain]
    for folder, config in zip(folders, configs, strict=True):
        own = parts_of_run(settings, ("reward", *THE_MODEL))
        if "model" not in own:
            check_may_be_given(config)
        check_trusted(config, folder, own, trusted=trusted)
    _check_alike(folders, configs)
    check_writable(out)
    gauge, cells = None, []
    for folder, config, label in zip(folders, configs, _labels(folders, configs), strict=True):
        with fresh_accelerator():
            parts = prepare(config, folder, checkpoint=list_checkpoints(folder)[-1])
            gauge = gauge or _gauge(parts, plain[0], held_out, out, progress)
            cells.append(_measure(parts, folder, label, gauge, progress))
    assert gauge is not None
    return outcome_of(gauge, tilt_curve(gauge, out, progress.start), cells)


def _check_once(folders: Sequence[Path]) -> None:
    """The same run twice would be two runs of one seed, with a spread of nothing."""
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"compare: {folder} is given twice; give each run once")
        seen.add(folder.resolve())


def _config(
    folder: Path,
    metrics: Sequence[str] | None,
    settings: Sequence[str],
    *,
    trusted: bool,
) -> Config:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run: there is no {CONFIG} in it")
    if not list_checkpoints(folder):
        raise UserError(f"{folder} has no checkpoint yet; train it first")
    overrides = ["guard=null", "training.trackers=[]"]
    overrides += [] if metrics is None else [f"evaluation.metrics=[{','.join(metrics)}]"]
    find = methods_of(folder, trusted=trusted)
    return load_run_config(folder, [*overrides, *settings], find)


def _check_alike(folders: Sequence[Path], configs: Sequence[Config]) -> None:
    """Figures of runs can be compared only where one gauge measures them all."""

    def beta(config: Config) -> Any:
        return method_settings(config.method).get("beta")

    for name, value in (
        ("model", lambda config: config.model),
        ("model_lora", lambda config: (config.model_lora_hash, config.model_lora_scale)),
        ("model_quantization", lambda config: config.model_quantization),
        ("prompts", lambda config: load_prompts(config.prompts, Path(), config.seed)),
        ("reward", lambda config: config.reward),
        ("sampler", lambda config: config.sampler),
        ("method.beta", beta),
    ):
        for folder, config in zip(folders[1:], configs[1:], strict=True):
            if value(config) != value(configs[0]):
                raise UserError(
                    f"{name}: {folder} has another than {folders[0]}; compare runs that share it"
                )
    _check_one_model(folders, configs)


def _check_one_model(folders: Sequence[Path], configs: Sequence[Config]) -> None:
    """Refuse other models under one name, by their marks as far as those are of one make."""
    first: dict[str, tuple[Path, str]] = {}
    for folder, config in zip(folders, configs, strict=True):
        mark = config.model_hash
        if mark is None:
            continue
        # A hash of weights is of those in the precision of the run.
        make = mark.partition(":")[0] if is_of_files(mark) else str(dtype_of(config))
        other, known = first.setdefault(make, (folder, mark))
        if mark != known:
            raise UserError(
                f"model_hash: {folder} has another than {other}; compare runs that share it"
            )


def _labels(folders: Sequence[Path], configs: Sequence[Config]) -> list[str]:
    """A method's name where that tells runs apart but for their seeds, else the folder's."""
    kinds: dict[str, set[str]] = {}
    for config in configs:
        plain = config.model_dump(mode="json", exclude={"output_dir", "seed", "evaluation"})
        kinds.setdefault(method_settings(config.method)["name"], set()).add(repr(plain))
    names = [method_settings(config.method)["name"] for config in configs]
    return [
        name if len(kinds[name]) == 1 else folder.name
        for name, folder in zip(names, folders, strict=True)
    ]


def _gauge(parts: Parts, own: Config, held_out: str | None, out: Path, progress: Progress) -> Gauge:
    """With a bank of the first run's own proportions.

    Args:
        own: the first run's configuration, without ``--n``.
    """
    config, measured = parts.config, own.evaluation
    size = BankSize.for_images(measured.bank, measured.n, config.evaluation.n)
    if measured.bank == 0:
        size = BankSize.all_of(SMALLEST_BANK * config.evaluation.n)
    second = held_out_reward(held_out, embedded=config.model in nano.MODELS)
    rewards = (parts.reward, second)
    beta = parts.trainer.method.beta
    bank = scored_bank(
        parts.model,
        rewards,
        config,
        parts.evaluated,
        parts.fingerprint,
        out,
        progress.start,
        size=size,
        beta=beta,
        specs=[config.reward, held_out],
    )
    parts.tell(size.note(len(bank.samples), "without --n all are"))
    gauge = Gauge.of(parts.reward, second, beta, parts.evaluated, bank)
    return gauge.with_metrics(parts.model, config.evaluation)


def _measure(
    parts: Parts, folder: Path, label: str, gauge: Gauge, progress: Progress
) -> Mapping[str, Any]:
    with steady(folder) as place:
        points = _points(parts, place, label, gauge, progress)
        parts.tell(_calibrated(folder, list_checkpoints(place)[-1]))
    return {
        "method": label,
        "seed": parts.config.seed,
        "points": points,
        "curve": curve_of_run(folder, parts.config.updates_per_rollout),
        "updates": points[-1]["update"],
        "seconds": points[-1]["seconds"],
    }


def _calibrated(run: Path, last: Path) -> list[str]:
    """A line about a last policy that is not as it was trained, which those before it are."""
    try:
        found = load_calibration(last)
    except DamagedCheckpoint:  # which was named when it was left out
        return []
    if found is None:
        return []
    return [
        f"{run}: after update {found['update']} training.calibrate put the policy at strength "
        f"{found['strength']:.3g}; the last figures are of that, those before of what was trained"
    ]


def _points(
    parts: Parts, folder: Path, label: str, gauge: Gauge, progress: Progress
) -> list[dict[str, Any]]:
    found = list_checkpoints(folder)
    told = progress.start(f"measure {label}"[:40], len(found) * parts.config.evaluation.n)
    points = []
    for path, (manifest, policy) in each_whole(found, lambda path: _read(path, found[-1])):
        put_policy(parts.model.network, policy, path, parts.config.model)
        figures = gauge.measure_policy(parts.model, parts.config, told)
        points.append({"update": manifest["update"], "seconds": manifest["seconds"], **figures})
    if not points:
        raise UserError(f"{folder} has no checkpoint that is whole; train it again")
    return points


def _read(folder: Path, last: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return read_manifest(folder), (load_policy if folder == last else load_trained)(folder)
