"""`nf.evaluate`: a run is measured again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nablaflow.api.given import Model, Prompts, has_function, parts_of, prompts_of
from nablaflow.config.arguments import EvaluateArguments, checked, names
from nablaflow.errors import in_python
from nablaflow.models import hand_over
from nablaflow.rewards import load
from nablaflow.runs.evaluate import evaluate_run
from nablaflow.runs.run import Run
from nablaflow.settings import plain
from nablaflow.surroundings import surrounded
from nablaflow.typing import Reward


@in_python
@surrounded
def evaluate(
    of: Run | str | Path,
    *,
    n: int | None = None,
    features: str = "pixels",
    metrics: Iterable[str] | str | None = None,
    only_last: bool = False,
    strengths: Iterable[float] = (),
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
        strengths: of the last checkpoint, to be measured besides: 0 is the reference, 1 the policy.
        prompts: in place of the run's own.
        reward: in place of the run's own.
        model: the pipeline that the run was begun with, or its folder, where the run has no name
            for it; its weights are checked.
        trusted: whether your word is given for the code, hosts and files that the run asks for.

    Returns:
        What summary.json has of figures, the protocol's under ``protocol``, and those of strengths
        under ``strengths``.

    Raises:
        UserError: a mistake in any of these.
    """
    given = {"n": n, "features": features, "metrics": names(metrics)}
    asked = checked(EvaluateArguments, **given, strengths=names(strengths))
    folder, function, live, kind = parts_of(of)
    settings = of.settings if isinstance(of, Run) else []
    if isinstance(reward, str | Mapping) and not has_function(reward):
        load(reward)  # refuses what JSON has nothing for
        settings.append(f"reward={json.dumps(plain(reward))}")
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
        strengths=asked.strengths,
        prompts=prompts_of(prompts),
        settings=settings,
        trusted=trusted,
        reward=function,
        is_own=reward is None and function is not None,
        pipeline=live,
        method=kind,
    )
