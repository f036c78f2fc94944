"""Ctrl-C, SIGTERM and SIGHUP wherever a command is: one line, status 130, nothing half written.

Each attempt is a process of its own that carries out the real command line, and sends itself the
signal at a place of the code, or after some time of its processor.
"""

from __future__ import annotations

import itertools
import os
import pkgutil
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nablaflow.__main__ import main
from nablaflow.runs.stopping import STOPS
from nablaflow.storage.run_folder import is_begun
from tests.faults.conftest import SHORT
from tests.faults.processes import differences, in_a_process
from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

OFTEN = (*SHORT, "training.updates=6", "training.keep_checkpoints=1", "evaluation.bank=4")
Arm = Callable[[int], None]
"""Sets a process up to send itself a signal of this number."""
NOTHING: Arm = lambda number: None  # noqa: E731


def carry_out(arguments: list[str], said: Path, arm: Arm = NOTHING, number: int = 0) -> int:
    """Exit status of the command line, as a shell's foreground would start it."""

    def work() -> None:
        for stop in STOPS:
            own = signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL
            signal.signal(stop, own)
        sys.argv = ["nablaflow", *arguments]
        arm(number)
        main()

    said.unlink(missing_ok=True)
    return in_a_process(work, said)


def at(place: str) -> Arm:
    """When a function is called for the first time, by its path."""

    holder, _, name = place.rpartition(".")
    owner: Any = pkgutil.resolve_name(holder)  # before any process is forked, which share it

    def arm(number: int) -> None:
        original = getattr(owner, name)

        def called(*given: Any, **named: Any) -> Any:
            setattr(owner, name, original)
            os.kill(os.getpid(), number)
            return original(*given, **named)

        setattr(owner, name, called)

    return arm


def after(seconds: float) -> Arm:
    """After so much processor time."""

    def arm(number: int) -> None:
        signal.signal(signal.SIGVTALRM, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)

    return arm


def check_stopped(said: Path, world: Path, status: int, *words: str) -> None:
    """One line and status 130; nothing that was begun is left beside what is whole."""
    told = said.read_text(errors="replace")
    lines = [line for line in told.splitlines() if line.startswith("nablaflow: ")]
    assert (status, len(lines)) == (130, 1), told
    assert all(word in lines[0] for word in words), told
    for never in ("Traceback", "Aborted", "ignored in"):
        assert never not in told, told
    left = [path for path in world.rglob("*") if path.name.startswith((".partial", ".nablaflow-s"))]
    assert not left, (left, told)


TRAINING = {
    "nablaflow.config.overrides.load_config": "stopped",
    "nablaflow.runs.align.prepare": "stopped",
    "nablaflow.runs.align.rehearse": "stopped",
    "nablaflow.runs.align.open_run": "stopped",
    "nablaflow.training.batches.Batches.rollouts": "stopped after update 1; go on with --resume",
    "nablaflow.rewards.calling.left_as_it_was": "stopped",
    "nablaflow.training.stepper.Stepper.apply": "stopped after update 2; go on with --resume",
    # Of update 3, after which nothing was asked yet.
    "nablaflow.training.keeping.save_checkpoint": "stopped after update 4; go on with --resume",
    "nablaflow.runs.align.append_record": "stopped after update 5; go on with --resume",
    "nablaflow.runs.finish.save_policy": "it is trained, go on with --resume",
    "nablaflow.evaluation.measure.reference_bank": "it is trained, go on with --resume",
    "nablaflow.runs.finish.evaluate": "it is trained, go on with --resume",
    "nablaflow.report.html.write_report": "it is trained, go on with --resume",
}
"""Where a training is, in the order of one, and what its end says."""


def test_a_training_at_every_phase(recipe: Path, here: Path, tmp_path: Path):
    """One run, stopped at each in turn; then it is as one that nothing happened to."""
    said, run = tmp_path / "said", here / "run"
    command = ["train", str(recipe), *OFTEN]
    for (place, words), number in zip(TRAINING.items(), itertools.cycle(STOPS), strict=False):
        again = ["--resume"] * is_begun(run)
        status = carry_out([*command, *again], said, at(place), number)
        check_stopped(said, here, status, words)
    assert carry_out([*command, "--resume"], said) == 0, said.read_text()
    assert carry_out([*command, "output_dir=straight"], said) == 0, said.read_text()
    assert differences(run, here / "straight") == []


@pytest.fixture
def judged(here: Path) -> Path:
    """A folder of images with ratings."""
    folder = here / "judged"
    folder.mkdir()
    rows = ["image,score"]
    for index in range(24):
        Image.new("RGB", (16, 16), (10 * index, 10, 10)).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{index % 5}")
    (folder / "ratings.csv").write_text("\n".join(rows))
    return folder


EXACT = "exact --problem ring --seeds 1 --updates 8 --batch 8 --n 100 --steps 4 --workers 1"
COMMANDS = {
    "eval": ("eval run --n 4 --out measured", "nablaflow.evaluation.protocol._sampled"),
    "sample": ("sample run --n 4 --out seen", "nablaflow.runs.sample.write_images"),
    "export": ("export run --format kohya --out exported", "nablaflow.runs.export.put_in_order"),
    "gallery": ("gallery run --n 2 --out shown", "nablaflow.runs.gallery._write_images"),
    "compare": ("compare run --n 4 --out compared", "nablaflow.comparison.finished._measure"),
    "exact": (f"{EXACT} --out laboratory", "nablaflow.exact.study.LabStudy.carry_out"),
    "reward fit": (
        "reward fit judged --features pixels --members 2",
        "nablaflow.fitting.fit_folder",
    ),
    "reward score": ("reward score judged --reward warmth", "nablaflow.fitting.score_folder"),
    "doctor": ("doctor", "nablaflow.runs.doctor.examine"),
}
"""Each command besides training, and a function that it is in the middle of."""
READ = ("reward score", "doctor")
"""Those that write nothing."""
REFUSE = ("sample", "export", "gallery", "reward fit")
"""Those that do not write over what they wrote."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_its_middle(run: Path, judged: Path, here: Path, tmp_path: Path, command: str):
    arguments, place = COMMANDS[command]
    said, before = tmp_path / "said", contents(here)
    number = STOPS[list(COMMANDS).index(command) % len(STOPS)]
    status = carry_out(arguments.split(), said, at(place), number)
    check_stopped(said, here, status)
    assert before.items() <= contents(here).items()
    if command not in READ:
        assert carry_out(arguments.split(), said) == 0, said.read_text()


IMPORTED = """
import os, sys
place, number = sys.argv[1:]
class Stopped:
    def find_spec(self, name, *_):
        if name == place:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Stopped())
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
from nablaflow.__main__ import main
sys.argv = ["nablaflow", "sample", "nano"]
main()
"""


@pytest.mark.parametrize(
    ("name", "number"),
    [("typer", signal.SIGTERM), ("nablaflow.runs.sample", signal.SIGINT), ("torch", signal.SIGHUP)],
)
def test_while_modules_are_loaded(name: str, number: int, here: Path):
    """A process from its very start."""
    command = [sys.executable, "-c", IMPORTED, name, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=here)
    assert (ended.returncode, ended.stderr) == (130, "nablaflow: stopped\n")


# --- any moment -----------------------------------------------------------------------------------


def moments(command: list[str], said: Path, seed: int, count: int) -> Iterator[tuple[Arm, int]]:
    """Seconds up to what the command takes; it is carried out once to know that."""
    before = os.times()
    assert carry_out(command, said) == 0, said.read_text()
    took = os.times()
    longest = took.children_user - before.children_user
    draw = random.Random(seed)
    for number in itertools.islice(itertools.cycle(STOPS), count):
        yield after(draw.uniform(0.0, longest)), number


@pytest.mark.slow
def test_a_training_at_a_hundred_moments(recipe: Path, here: Path, tmp_path: Path):
    said, command = tmp_path / "said", ["train", str(recipe), *OFTEN]
    drawn = moments([*command, "output_dir=straight"], said, 0, 100)
    stopped = 0
    for number, (arm, stop) in enumerate(drawn):
        run = here / f"run-{number // 4}"  # each is stopped four times, then goes on to its end
        own = [*command, f"output_dir={run.name}", *["--resume"] * is_begun(run)]
        status = carry_out(own, said, arm, stop)
        if status:
            check_stopped(said, here, status)
            stopped += 1
        if number % 4 == 3:
            own = [*command, f"output_dir={run.name}", *["--resume"] * is_begun(run)]
            assert carry_out(own, said) == 0, said.read_text()
            assert differences(run, here / "straight") == []
    assert stopped > 50


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_at_twenty_moments(
    run: Path, judged: Path, here: Path, tmp_path: Path, command: str
):
    arguments, said = COMMANDS[command][0].split(), tmp_path / "said"
    again = [*arguments, *["--overwrite"] * (command in REFUSE)]
    for arm, number in moments(again, said, 0, 20):
        status = carry_out(again, said, arm, number)
        if status:
            check_stopped(said, here, status)
    assert carry_out(again, said) == 0, said.read_text()
