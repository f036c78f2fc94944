"""Align diffusion image models with a reward; keep their diversity and their prior.

import nablaflow as nf

run = nf.align(
    model="path/or/hub-id",  # or a diffusers pipeline that is in memory
    reward="brightness",
    prompts=["a photo of a cat"],
    method=nf.ResidualNablaDB(beta=100.0),
    updates=200,
    output_dir="runs/x",
)
pipeline = run.pipeline()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nablaflow import exact, models, nano
    from nablaflow.api.align import align
    from nablaflow.api.choose_beta import choose_beta
    from nablaflow.api.compare import compare
    from nablaflow.api.evaluate import evaluate
    from nablaflow.api.sample import sample
    from nablaflow.config.settings import (
        EvaluationSettings,
        GuardSettings,
        HeldOutSettings,
        OptimizerSettings,
        TrainingSettings,
    )
    from nablaflow.errors import ExportError, TrainingStopped, UserError
    from nablaflow.estimators import Estimator
    from nablaflow.methods import (
        DDPO,
        AdjointMatching,
        AlignProp,
        BestOfN,
        DagDB,
        DagKL,
        DiffusionNFT,
        Draft,
        FlowGRPO,
        GuidedSampling,
        Losses,
        Method,
        NablaDB,
        NablaTD,
        Networks,
        PathWeightedMatching,
        ReFL,
        ResidualNablaDB,
        RewardWeightedRegression,
        TerminalMatching,
        TrainingBatch,
        Untrained,
        ValueMatching,
        VGGFlow,
    )
    from nablaflow.models import AdapterSettings, DiffusionModel, FlowSettings, SamplerSettings
    from nablaflow.runs.run import Run
    from nablaflow.runs.stopping import Interrupted
    from nablaflow.typing import Reward

__version__ = "0.1.0"
__all__ = [
    "DDPO",
    "AdapterSettings",
    "AdjointMatching",
    "AlignProp",
    "BestOfN",
    "DagDB",
    "DagKL",
    "DiffusionModel",
    "DiffusionNFT",
    "Draft",
    "Estimator",
    "EvaluationSettings",
    "ExportError",
    "FlowGRPO",
    "FlowSettings",
    "GuardSettings",
    "GuidedSampling",
    "HeldOutSettings",
    "Interrupted",
    "Losses",
    "Method",
    "NablaDB",
    "NablaTD",
    "Networks",
    "OptimizerSettings",
    "PathWeightedMatching",
    "ReFL",
    "ResidualNablaDB",
    "Reward",
    "RewardWeightedRegression",
    "Run",
    "SamplerSettings",
    "TerminalMatching",
    "TrainingBatch",
    "TrainingSettings",
    "TrainingStopped",
    "Untrained",
    "UserError",
    "VGGFlow",
    "ValueMatching",
    "align",
    "choose_beta",
    "compare",
    "evaluate",
    "exact",
    "models",
    "nano",
    "sample",
]

# Where names are that `nablaflow.methods` does not have. All are loaded on first use, so that
# `import nablaflow` and the command line answer at once.
_HOMES = {
    "nablaflow.api.align": ("align",),
    "nablaflow.api.choose_beta": ("choose_beta",),
    "nablaflow.api.compare": ("compare",),
    "nablaflow.api.evaluate": ("evaluate",),
    "nablaflow.api.sample": ("sample",),
    "nablaflow.config.settings": (
        "EvaluationSettings",
        "GuardSettings",
        "HeldOutSettings",
        "OptimizerSettings",
        "TrainingSettings",
    ),
    "nablaflow.errors": ("ExportError", "TrainingStopped", "UserError"),
    "nablaflow.estimators": ("Estimator",),
    "nablaflow.models": ("AdapterSettings", "DiffusionModel", "FlowSettings", "SamplerSettings"),
    "nablaflow.runs.run": ("Run",),
    "nablaflow.runs.stopping": ("Interrupted",),
    "nablaflow.typing": ("Reward",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("exact", "models", "nano")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nablaflow' has no attribute {name!r}")
    if name in _ROOMS:
        return importlib.import_module(f"nablaflow.{name}")
    found = getattr(importlib.import_module(_HOME.get(name, "nablaflow.methods")), name)
    globals()[name] = found  # the next time without this function
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
