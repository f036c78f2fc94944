"""How a run was launched, as its environment says, and whether that is what it will do.

`torchrun`, `accelerate launch`, Slurm and MPI tell a process what it is part of by variables. A
process that is told of others and does not find them would train alone, beside others that do the
same, in one folder; what accelerate is asked for and does not do here would be left out unseen.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import is_torch_version

from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError, one_line
from nablaflow.storage.lock import forget_launch, is_of_launch

SIZES = (
    *("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),
    *("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
)
"""Where launchers say how many processes they started; the first that is there counts."""

PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a process must know besides, to find the others."""

ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
    "ACCELERATE_USE_TP": "tensor parallelism",
}
PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What accelerate calls those of ``training.precision``."""

TORCH = "2.7.0"
"""The first whose FSDP2 leaves parameters out."""

HOW = "start it with torchrun --nproc-per-node N -m nablaflow train … (docs/scaling.md)"


@dataclass(frozen=True)
class Launch:
    """What a process was told.

    Attributes:
        processes: of the run, on all machines.
        here: of them, on this machine; None: nobody says.
        sharded: whether FSDP2 is asked for.
        name: which launch it is, the same after an elastic restart; None: nobody says.
        restarts: how often torchrun has started these processes again.
        first: whether this is the first of the processes.
    """

    processes: int
    here: int | None
    sharded: bool
    name: str | None = None
    restarts: int = 0
    first: bool = True

    @staticmethod
    def read(environ: Mapping[str, str], training: TrainingSettings) -> Launch:
        """From a process's environment.

        Raises:
            UserError: it asks for what a run does not do, or is no whole launch.
        """
        _check_engine(environ)
        _check_options(environ, training)
        sizes = {name: _count(environ, name) for name in SIZES if environ.get(name)}
        processes = next(iter(sizes.values()), 1)
        _check_whole(environ, processes)
        here = _count(environ, "LOCAL_WORLD_SIZE") if environ.get("LOCAL_WORLD_SIZE") else None
        sharded = _is_on(environ, "ACCELERATE_USE_FSDP")
        if sharded and not environ.get("WORLD_SIZE"):
            raise UserError(f"ACCELERATE_USE_FSDP: there are no processes to divide among; {HOW}")
        restarts = _number(environ, "TORCHELASTIC_RESTART_COUNT") or 0
        first = not _number(environ, "RANK")
        return Launch(processes, here, sharded, _name(environ), restarts, first)

    def goes_on(self, run: Path) -> bool:
        """Whether these processes were started again to go on with a run that they began."""
        return self.restarts > 0 and self.name is not None and is_of_launch(run, self.name)

    def begin(self, run: Path) -> None:
        """Have an older launch of the same name leave nothing that `goes_on` takes for its own.

        Raises:
            UserError: the run's marker cannot be written.
        """
        if self.restarts > 0 or self.name is None or not self.first:
            return
        try:
            forget_launch(run, self.name)
        except OSError as error:
            raise UserError(f"output_dir: cannot write {run} ({error.strerror})") from error

    def check_devices(self, device: torch.device) -> None:
        """Refuse more processes than there are GPUs for.

        Raises:
            UserError: so it is.
        """
        if device.type != "cuda" or self.here is None:
            return
        found = torch.cuda.device_count()
        if self.here > found:
            raise UserError(
                f"LOCAL_WORLD_SIZE: {self.here} processes were started on a machine with {found} "
                f"GPU{'s' * (found != 1)}; start {found}, or set training.device=cpu"
            )

    def check_found(self, processes: int) -> None:
        """Refuse to train beside others that do the same.

        Args:
            processes: that found each other.

        Raises:
            UserError: they are not all.
        """
        if processes != self.processes:
            raise UserError(
                f"launch: {self.processes} processes were started and {processes} found each "
                f"other, so each would train for itself; {HOW}"
            )


def _name(environ: Mapping[str, str]) -> str | None:
    """By the id that torchrun was given, or its own process, which outlives those it starts."""
    run_id = environ.get("TORCHELASTIC_RUN_ID")
    if not run_id or run_id == "none":
        return None if run_id is None else f"of process {os.getppid()} on {socket.gethostname()}"
    return one_line(run_id)


def _count(environ: Mapping[str, str], name: str) -> int:
    value = environ[name]
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{name}: must be a number of processes, not {value!r}; {HOW}")
    return int(value)


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _check_engine(environ: Mapping[str, str]) -> None:
    for name, engine in ENGINES.items():
        if _is_on(environ, name):
            raise UserError(
                f"{name}: runs are not trained by {engine}; use accelerate's multi_gpu, or its "
                "FSDP with fsdp_version 2 (recipes/accelerate)"
            )
    if not _is_on(environ, "ACCELERATE_USE_FSDP"):
        return
    if not is_torch_version(">=", TORCH):
        raise UserError(
            f"ACCELERATE_USE_FSDP: dividing weights needs torch {TORCH} or newer, and this is "
            f"{torch.__version__}; pip install -U torch, or leave --use_fsdp out"
        )
    if environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP_VERSION: FSDP is served as version 2 alone; give accelerate launch "
            "--fsdp_version 2, or recipes/accelerate/fsdp2.yaml"
        )
    if _is_on(environ, "FSDP_OFFLOAD_PARAMS"):
        raise UserError("FSDP_OFFLOAD_PARAMS: weights stay on the GPU; set it to false")
    if _is_on(environ, "FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError(
            "FSDP_ACTIVATION_CHECKPOINTING: set it to false and, in the recipe, "
            "training.gradient_checkpointing=true"
        )


def _check_options(environ: Mapping[str, str], training: TrainingSettings) -> None:
    asked, own = environ.get("ACCELERATE_MIXED_PRECISION", "no"), training.precision
    if asked not in ("no", PRECISIONS[own]):
        other = f", or set training.precision={asked}" * (asked in PRECISIONS.values())
        raise UserError(
            f"training.precision: accelerate is told {asked} and the recipe says {own}; leave "
            f"--mixed_precision {asked} out{other}"
        )
    if own == "fp16" and _is_on(environ, "ACCELERATE_USE_FSDP"):
        raise UserError(
            "training.precision: fp16 needs one scale for all of a gradient, which FSDP divides; "
            "set training.precision=bf16"
        )
    if environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1"):
        raise UserError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: leave it at 1; training.micro_batch says how "
            "many transitions are trained at once, and the step is the same whatever it is"
        )
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("ACCELERATE_DYNAMO_BACKEND: networks are not compiled; leave it at no")


def _check_whole(environ: Mapping[str, str], processes: int) -> None:
    """Whether a process that is one of several knows where the others are."""
    if environ.get("WORLD_SIZE"):
        _check_place(environ, processes)
        return
    for name in ("RANK", "LOCAL_RANK"):
        if environ.get(name):
            raise UserError(
                f"{name}: is {environ[name]}, and WORLD_SIZE, how many processes there are, is not "
                f"set; unset it for one process, or {HOW}"
            )
    # For one process, accelerate's simple launcher sets a meeting place only if several were asked
    # for, and starts one all the same where there is no GPU for each.
    alone = processes == 1 and environ.get("ACCELERATE_MIXED_PRECISION")
    if alone and environ.get("MASTER_ADDR"):
        raise UserError(
            "launch: accelerate launch was asked for several processes and started one, as it "
            "does without a GPU for each; give it --multi_gpu, or unset MASTER_ADDR for one "
            "process"
        )


def _check_place(environ: Mapping[str, str], processes: int) -> None:
    """Whether its own number is one of theirs, and the meeting place is one."""
    missing = [name for name in PLACE if not environ.get(name)]
    if processes > 1 and missing:
        raise UserError(
            f"WORLD_SIZE: is {processes}, and nothing says where the others are "
            f"({', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set); unset it, "
            f"or {HOW}"
        )
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        rank, count = _number(environ, name), _number(environ, size)
        if rank is not None and count is not None and rank >= count:
            raise UserError(
                f"{name}: is {rank}, and {size} is {count}, whose last process is {count - 1}; "
                f"count from 0, or {HOW}"
            )
    here, port = _number(environ, "LOCAL_WORLD_SIZE"), _number(environ, "MASTER_PORT")
    if here is not None and here > processes:
        raise UserError(
            f"LOCAL_WORLD_SIZE: {here} processes on this machine are more than the {processes} of "
            f"WORLD_SIZE; {HOW}"
        )
    if port is not None and not 0 < port < 65536:
        raise UserError(f"MASTER_PORT: {port} is no port; use one from 1 to 65535")


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """What a variable says; None where it is not set."""
    value = environ.get(name)
    if not value:
        return None
    if not value.isdecimal():
        raise UserError(f"{name}: must be a whole number, not {value!r}; {HOW}")
    return int(value)
