"""`nf.compare`: runs or methods side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nablaflow.api.given import parts_of, those_given
from nablaflow.comparison import Outcome, compare_asked
from nablaflow.comparison.writing import write_outcome
from nablaflow.config.arguments import CompareArguments, checked, names, place
from nablaflow.errors import in_python
from nablaflow.runs.run import Run
from nablaflow.surroundings import surrounded


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
    calibrate: bool = False,
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
        calibrate: whether each method is measured besides at the strength that has the exact tilt's
            mean reward.
        out: folder for figures, tables and pictures, and for the methods' runs.
        overwrite: replace figures of other settings there.
        trusted: whether your word is given for what the runs ask for.

    Returns:
        An outcome for each reward; its `rows()` are the table.

    Raises:
        UserError: a mistake in any of these.
    """
    folder = place("out", out)
    lists = {"methods": names(methods), "reward": names(reward), "metrics": names(metrics)}
    given = {"seeds": seeds, "minutes": minutes, "beta": beta, "n": n, "held_out": held_out}
    asked = checked(CompareArguments, **lists, **given, calibrate=calibrate)
    own = {"seeds": asked.seeds, "minutes": asked.minutes, "beta": asked.beta}
    outcomes = compare_asked(
        [parts_of(run)[0] for run in runs],
        asked.methods,
        asked.reward,
        folder,
        training=those_given(**own, calibrate=asked.calibrate or None),
        n=asked.n,
        held_out=asked.held_out,
        metrics=asked.metrics,
        overwrite=overwrite,
        trusted=trusted,
    )
    for outcome in outcomes:
        write_outcome(folder, outcome)
    return outcomes
