"""A launch that does not do what it says is refused by its environment alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from nablaflow.runs.checks import check_shares
from nablaflow.runs.launch import Launch
from nablaflow.storage.lock import MARKER, held, sign_launch

TWO = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
FSDP2 = TWO | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"


def read(environ: dict[str, str], **training: str) -> Launch:
    return Launch.read(environ, TrainingSettings(**training))


def test_a_process_alone_one_of_two_and_one_that_divides_the_weights():
    assert read({}) == Launch(1, None, sharded=False)
    assert read(TWO) == Launch(2, 2, sharded=False, first=False)
    assert read(FSDP2).sharded


def accelerates(monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, str]:
    """What accelerate's simple launcher, the one without a GPU, tells its only process."""
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    given = [*options, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    args = launch_command_parser().parse_args([*given, "-m", "nablaflow"])
    args.use_cpu = args.cpu
    args.num_cpu_threads_per_process = 1
    return prepare_simple_launcher_cmd_env(args)[1]


def test_one_process_for_two_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"launch: .* asked for several .* --multi_gpu"):
        read(accelerates(monkeypatch, "--num_processes", "2"))
    assert read(accelerates(monkeypatch, "--num_processes", "1")).processes == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: is 2, .*RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**TWO, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE: must be a number of processes, not 'many'"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ACCELERATE_USE_FSDP: .*torchrun"),
        ({**FSDP2, "FSDP_VERSION": "1"}, "FSDP_VERSION: .*--fsdp_version 2"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS: .*false"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "gradient_checkpointing=true"),
        ({**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED: .*DeepSpeed"),
        ({**TWO, "ACCELERATE_USE_TP": "true"}, "ACCELERATE_USE_TP: .*tensor parallelism"),
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "bf16"}, r"training\.precision=bf16"),
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "fp8"}, "leave --mixed_precision fp8 out$"),
        ({**TWO, "RANK": "2"}, "RANK: is 2, and WORLD_SIZE is 2, whose last process is 1"),
        ({**TWO, "LOCAL_RANK": "2"}, "LOCAL_RANK: is 2, and LOCAL_WORLD_SIZE is 2"),
        ({**TWO, "RANK": "-1"}, "RANK: must be a whole number, not '-1'"),
        ({**TWO, "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE: 4 processes .* more than the 2"),
        ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT: must be a whole number, not 'http'"),
        ({**TWO, "MASTER_PORT": "70000"}, "MASTER_PORT: 70000 is no port"),
        ({**TWO, "TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT: must be"),
        ({"RANK": "1"}, "RANK: is 1, and WORLD_SIZE, .* is not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK: is 0, and WORLD_SIZE, .* is not set"),
        ({**TWO, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, r"training\.micro_batch"),
        ({**TWO, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND"),
    ],
)
def test_what_is_asked_for_and_not_done_is_refused(environ: dict[str, str], words: str):
    with pytest.raises(UserError, match=words):
        read(environ)


def test_fp16_is_not_divided():
    with pytest.raises(UserError, match=r"training\.precision: .*bf16"):
        read(FSDP2, precision="fp16")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_did_not_find_each_other_are_refused(name: str):
    launch = read({name: "4"})
    with pytest.raises(UserError, match="4 processes were started and 1 found each other"):
        launch.check_found(1)
    launch.check_found(4)
    # torchrun on each of 4 machines: its own count is the one that is meant.
    assert read({**TWO, name: "4"}).processes == 2


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"LOCAL_WORLD_SIZE: 2 processes .* with 1 GPU; start 1"):
        read(TWO).check_devices(torch.device("cuda"))
    read(TWO).check_devices(torch.device("cpu"))


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "multinode"])
def test_what_the_shipped_files_ask_accelerate_for_is_served(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    from accelerate.commands.launch import _validate_launch_command

    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    options = ["--config_file", str(RECIPES / f"{name}.yaml"), "-m", "nablaflow", "train", "r.yaml"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    asked = prepare_multi_gpu_env(args)
    assert read({**asked, **TWO}).sharded == (name == "fsdp2")


def test_an_elastic_restart_goes_on_with_its_own_run_alone(tmp_path: Path):
    first = read({**TWO, "TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"})
    again = read({**TWO, "TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1"})
    other = read({**TWO, "TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert not again.goes_on(tmp_path / "none")
    with held(tmp_path):
        assert not again.goes_on(tmp_path)
        assert first.name is not None
        sign_launch(tmp_path, first.name)
    assert [launch.goes_on(tmp_path) for launch in (first, again, other)] == [False, True, False]
    with held(tmp_path):  # by whoever comes next
        assert not again.goes_on(tmp_path)


def test_an_older_run_of_the_same_name_is_not_gone_on_with(tmp_path: Path):
    """Jobs may all have one ``--rdzv-id``, and a restart may come before the folder is begun."""
    name = {**TWO, "TORCHELASTIC_RUN_ID": "a"}
    with held(tmp_path):
        sign_launch(tmp_path, "a")
    again = read({**name, "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "1"})
    for launch in (again, read({**name, "RANK": "1"}), read({**TWO, "RANK": "0"})):
        launch.begin(tmp_path)
        assert again.goes_on(tmp_path)
    before = (tmp_path / MARKER).read_text()
    read({**name, "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}).begin(tmp_path)
    assert not again.goes_on(tmp_path)
    assert (tmp_path / MARKER).read_text() == before.removesuffix("launch a\n")
    read({**name, "RANK": "0"}).begin(tmp_path / "none")


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (4, "2 x 3 trajectories .* 4 processes; .*prompts_per_update=4 would, or 3 processes"),
        (8, "prompts_per_update=8 would, or 6 processes"),
    ],
)
def test_a_number_of_processes_that_does_not_divide_says_what_would(processes: int, words: str):
    with pytest.raises(UserError, match=words):
        check_shares(TrainingSettings(prompts_per_update=2, images_per_prompt=3), processes)
    check_shares(TrainingSettings(prompts_per_update=2, images_per_prompt=3), 3)
