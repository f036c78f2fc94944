"""A finished run, as Python has it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch

from nablaflow.config.arguments import ExportArguments, checked, folder_of_run, place
from nablaflow.config.recipe import Config
from nablaflow.devices import is_dtype
from nablaflow.errors import UserError, in_python, show
from nablaflow.methods import Method
from nablaflow.models import LivePipeline, family_of, load_pipeline
from nablaflow.models.file_mark import is_of_files
from nablaflow.models.quantized import dequantize
from nablaflow.quiet import quiet_libraries
from nablaflow.rewards import NamedReward
from nablaflow.runs.belonging import check_figures, check_saved
from nablaflow.runs.export import export_run
from nablaflow.runs.pretrained import (
    check_may_be_given,
    copy_of_live,
    reference_of,
)
from nablaflow.runs.saved_config import load_run_config
from nablaflow.runs.trust import THE_MODEL, check_trusted, methods_of, parts_of_run
from nablaflow.storage.files import read_text
from nablaflow.storage.header import is_whole
from nablaflow.storage.records import read_records
from nablaflow.storage.run_folder import LORA_FILE, REPORT, SUMMARY
from nablaflow.surroundings import surrounded

LORA, MODEL = "lora", "model"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: with everything in it.
        config: its settings, with what they left to the run.
        summary: what summary.json holds.
        lora: folder of the adapter, or of the whole model where no adapter can be loaded.
        live: the pipeline that was handed over, if one was.
        reward: the function that was handed over, if one was.
    """

    folder: Path
    config: Config = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    lora: Path
    live: LivePipeline | None = field(default=None, repr=False)
    reward: NamedReward | None = field(default=None, repr=False)

    def __new__(cls, *given: Any, **named: Any) -> Run:
        """For who takes the class itself for `open`."""
        # Without any a copy begins, or what is read from a pickle.
        if (given or named) and len(given) < 2 and "config" not in named:
            raise UserError("Run: a finished run is opened by nf.Run.open(folder)")
        return super().__new__(cls)

    def __hash__(self) -> int:
        """By its folder, since its settings have lists."""
        return hash(self.folder)

    @classmethod
    @in_python
    def open(
        cls,
        folder: str | Path,
        *,
        trusted: bool = False,
        model: str | Path | None = None,
        model_lora: str | Path | None = None,
    ) -> Run:
        """A run that was finished before.

        Args:
            trusted: whether the user's word is given for the model's folder, where the run is
                somebody else's; see `nablaflow.runs.trust`.
            model: where its model is now, if that has moved.
            model_lora: where the LoRA in its reference is now, if that has.

        Raises:
            UserError: the folder holds no finished run, or the figures of another.
        """
        folder = folder_of_run(folder).absolute()
        summary = folder / SUMMARY
        saved = next((folder / name for name in (LORA, MODEL) if (folder / name).is_dir()), None)
        if saved is None or not summary.is_file():
            raise UserError(f"{folder} holds no finished run; give the output_dir of one")
        moved = _places(model, model_lora)
        own = parts_of_run(moved, THE_MODEL).intersection(THE_MODEL)
        config = load_run_config(folder, moved, methods_of(folder, trusted=trusted))
        if model is not None:
            check_may_be_given(config)
        check_trusted(config, folder, own, trusted=trusted)
        try:
            figures = json.loads(read_text(summary))
            if not isinstance(figures, dict):
                raise ValueError("no object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{summary} is damaged ({error}); train the run with --resume to measure it again"
            ) from None
        check_figures(folder, figures)
        return cls(folder, config, figures, saved)

    @property
    def method(self) -> type[Method]:
        """The class of its method."""
        assert isinstance(self.config.method, Method)
        return type(self.config.method)

    @property
    def settings(self) -> list[str]:
        """What of its folder's config.yaml is otherwise now: where its model and its LoRA are."""
        of_files = self.live is None and is_of_files(self.config.model_hash)
        return _places(self.config.model if of_files else None, self.config.model_lora)

    def check_is_there(self) -> None:
        """Refuse to go on without its folder.

        Raises:
            UserError: it was moved or removed.
        """
        if not self.folder.is_dir():
            raise UserError(
                f"run: {self.folder} is not there any more; open the run where it is now, "
                "nf.Run.open(folder)"
            )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The record of each update, as metrics.jsonl has them.

        Raises:
            UserError: its folder was moved or removed.
        """
        self.check_is_there()
        return read_records(self.folder)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT

    def _repr_html_(self) -> str | None:
        """In a notebook: the report, in a frame that runs nothing. Without one, as it prints."""
        if not self.report.is_file():
            return None
        page = escape(read_text(self.report))
        return f'<iframe sandbox srcdoc="{page}" style="width:100%;height:48em;border:0"></iframe>'

    @in_python
    @surrounded
    @quiet_libraries()
    def pipeline(self, dtype: torch.dtype | None = None) -> Any:
        """The policy as a stock diffusers pipeline, which shares nothing with any other.

        Args:
            dtype: of its weights; default: the precision of a pipeline that was handed over, else
                float32.

        Raises:
            UserError: the reference cannot be loaded, or is not the one that the run was begun
                with; or the adapter is not what was written; or ``dtype`` is none of torch's.
        """
        if dtype is not None and not is_dtype(dtype):  # diffusers takes float32 for a name
            raise UserError(
                f"dtype: must be one of torch's, such as torch.float16, not {show(dtype)}"
            )
        self.check_is_there()
        if self.lora.name == MODEL:
            check_saved(self.lora, self.summary)
            return load_pipeline(str(self.lora), dtype or torch.float32)
        pipeline = self._reference(dtype)
        dequantize(getattr(pipeline, family_of(pipeline).denoiser))  # of a stock pipeline's layers
        file = self.lora / LORA_FILE
        if not (file.is_file() and is_whole(file)):
            raise UserError(f"{file} is damaged; train the run with --resume to write it again")
        check_saved(self.lora, self.summary)
        pipeline.load_lora_weights(self.lora)
        return pipeline

    @in_python
    @surrounded
    def export(
        self,
        form: str,
        out: str | Path | None = None,
        *,
        dtype: str = "float32",
        checkpoint: str = "last",
        strength: float = 1.0,
        average: bool = False,
        overwrite: bool = False,
        trusted: bool = False,
    ) -> Path:
        """Write the policy to a folder of its own, in a format that other programs read.

        Args:
            form: ``diffusers``, ``kohya`` (the names of ComfyUI and A1111) or ``merged`` (a whole
                pipeline).
            out: the folder; default: ``exports/`` and the names of run and format.
            dtype: ``float32``, ``bfloat16`` or ``float16``, of the weights.
            checkpoint: ``last``, ``best`` or ``step-12``.
            strength: of what was trained, which the weights then have in them: 0 is the reference,
                1 the policy.
            average: the policy's average over the updates, of a run with ``adapter.ema_decay``.
            overwrite: replace an earlier export there.
            trusted: whether your word is given for what the run asks for.

        Returns:
            The folder.

        Raises:
            UserError: a mistake in any of these, or a format that cannot hold the policy.
        """
        which = {"checkpoint": checkpoint, "strength": strength}
        asked = checked(ExportArguments, form=form, dtype=dtype, **which)
        self.check_is_there()
        own = {"pipeline": self.live, "method": self.method, "settings": self.settings}
        own |= {"trusted": trusted}
        given = {"dtype": asked.dtype, "checkpoint": asked.checkpoint, "overwrite": overwrite}
        given |= {"strength": asked.strength, "average": average}
        to = None if out is None else place("out", out)
        return export_run(self.folder, asked.form, to, **given, **own).folder

    def _reference(self, dtype: torch.dtype | None) -> Any:
        if self.live is not None:
            return copy_of_live(self.config, self.live, dtype)
        return reference_of(self.config, None, dtype or torch.float32)


def _places(model: str | Path | None, lora: str | Path | None) -> list[str]:
    """The settings that say where a model and a LoRA are; none for what is not given."""
    given = {"model": model, "model_lora": lora}
    there = {name: path for name, path in given.items() if path is not None}
    for name, path in there.items():
        place(name, path)
    return [f"{name}={json.dumps(os.fspath(path))}" for name, path in there.items()]
