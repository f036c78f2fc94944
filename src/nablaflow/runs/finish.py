"""The end of a run: the policy saved and measured, its summary and its report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from nablaflow.config.overrides import plain_config
from nablaflow.config.yaml_text import dump_values
from nablaflow.devices import peak_device_mb
from nablaflow.evaluation.evaluate import Evaluation, evaluate
from nablaflow.models.adapters import swapped
from nablaflow.models.divided import whole_of
from nablaflow.models.export import save_policy
from nablaflow.models.file_mark import pinned
from nablaflow.models.load import absent_parts
from nablaflow.progress import Progress
from nablaflow.report.loading import Saved
from nablaflow.report.meaning import About
from nablaflow.report.pictures import before_after, save_picture
from nablaflow.report.privacy import without_folders, without_folders_in
from nablaflow.report.table import no_tilt
from nablaflow.runs.belonging import FILES, files_of, with_checksum
from nablaflow.runs.calibrate import calibrate_once, calibrated
from nablaflow.runs.pretrained import fused_lora
from nablaflow.runs.run import LORA, Run
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import best_folder
from nablaflow.storage.files import write_whole
from nablaflow.storage.records import read_records
from nablaflow.storage.run_folder import AVERAGE, REPORT, SAMPLES, SUMMARY, peak_rss_mb
from nablaflow.training.processes import by_main


def finish(parts: Parts, folder: Path, progress: Progress) -> Run:
    """Measure the policy, all processes together; the main one saves it and writes the rest."""
    started = time.perf_counter()
    trained_in = peak_device_mb(parts.model.device)  # before the evaluation, which no plan is of
    bank = calibrate_once(parts, folder, progress)
    saved = _save(parts, folder)
    evaluation = evaluate(parts.subject, progress.start, bank=bank)
    main = parts.accelerator.is_main_process

    def write() -> dict[str, Any]:
        said = no_tilt(evaluation.summary)
        if said is not None:
            progress.say(said)
        summary = _summary(parts, folder, evaluation, time.perf_counter() - started)
        if trained_in is not None:
            summary["peak_device_mb"] = trained_in
        summary[FILES] = files_of(folder, saved, parts.trainer.update)
        summary = with_checksum(summary)
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        _write_pictures(parts, folder, evaluation, summary, saved)
        return summary

    summary = by_main(parts.accelerator, write)
    return Run(folder, parts.config, summary if main else {}, saved)


def _summary(parts: Parts, folder: Path, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """What summary.json has; ``seconds`` are those since the last update."""
    summary = {
        **evaluation.summary,
        "seconds": parts.trainer.seconds + seconds,
        "training_seconds": parts.trainer.seconds,
        "peak_rss_mb": peak_rss_mb(),
        "updates": parts.trainer.update,
    }
    if (found := calibrated(parts)) is not None:
        summary["calibrated"] = found
    guard = parts.trainer.guard
    if guard is not None and guard.best is not None:
        best = best_folder(folder, guard.best.update).relative_to(folder)
        summary["guard"] = guard.summary(best.as_posix())
    return summary


def _save(parts: Parts, folder: Path) -> Path:
    """The policy, and its average where it has one; on the main process."""
    trainer = parts.trainer
    average = None if trainer.average is None else whole_of(trainer.average.values)

    def write() -> Path:
        saved = save_policy(parts.model, parts.source, folder)
        if average is not None:
            with swapped(parts.model.network, average):
                save_policy(parts.model, parts.source, folder / AVERAGE)
        return saved

    return by_main(parts.accelerator, write)


def _write_pictures(
    parts: Parts, folder: Path, evaluation: Evaluation, summary: dict[str, Any], saved: Path
) -> None:
    # Not above: the first update would wait for matplotlib, which nothing before this needs.
    from nablaflow.report.html import write_report

    (folder / SAMPLES).mkdir(exist_ok=True)
    sheet = before_after(evaluation.before, evaluation.after, evaluation.prompts)
    save_picture(sheet, folder / SAMPLES / "before_after.png")
    config = parts.config
    write_report(
        folder / REPORT,
        title=f"{parts.trainer.method.name} · {without_folders(parts.reward.name)}",
        config_text=dump_values(without_folders_in(plain_config(config))),
        summary=summary,
        before=evaluation.before,
        after=evaluation.after,
        prompts=evaluation.prompts,
        records=read_records(folder),
        saved=Saved(
            saved.name,
            as_lora=saved.name == LORA,
            pipeline=type(parts.model.pipeline).__name__,
            model=without_folders(pinned(config.model, config.model_hash)),
            call=parts.model.stock_call(evaluation.prompts[0]) | parts.model.stock_steps(),
            fused=fused_lora(parts.source),
            quantized=config.model_quantization,
            scheduler=parts.model.stock_scheduler(),
            absent=absent_parts(parts.model.pipeline),
        ),
        about=_about(parts),
    )


def _about(parts: Parts) -> About:
    method, guard = parts.trainer.method, parts.trainer.guard
    held_out = None if guard is None or guard.held_out is None else guard.held_out.name
    return About(
        method.name,
        without_folders(parts.reward.name),
        method.beta,
        method.aims_at_tilt,
        None if held_out is None else without_folders(held_out),
    )
