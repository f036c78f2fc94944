"""Entrants by the settings their searches found, each as trained and at the tilt's mean reward.

    OMP_NUM_THREADS=1 python benchmarks/comparison_at_strength.py --reward warmth --beta 4

trains each entrant of `FOUND` with its learning rate and the value of its own setting that were
nearest to the tilt in `comparison_grid.py`, for two minutes, measures it, finds the strength at
which its images have the exact tilt's mean reward, and measures it again. Finished runs are not
run again. ``--steps 50`` has all of them, what measures too, take as many steps of the sampler as
DDPO, DRaFT and AlignProp were published with (ReFL and adjoint matching: 40).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nablaflow.comparison import ComparisonStudy, race
from nablaflow.comparison.entrants import SAMPLER
from nablaflow.comparison.study import ComparisonCell
from nablaflow.comparison.writing import write_outcome
from nablaflow.config.defaults import BANK
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.methods.own import load_method
from nablaflow.progress import show
from nablaflow.report.comparison_table import comparison_markdown

FOUND: Mapping[str, str | None] = {
    "residual-nabla-db-contrastive": None,  # the default; nothing was searched for it
    "residual-nabla-db": "training.updates_per_rollout=8",
    "refl": "method.last=1.0",
    "ddpo-published": "method.clip_range=1e-3",
    "draft": "method.k=1",
    "alignprop": "method.most=3",
    "diffusion-nft": "method.policy_share=0.3",
    "flow-grpo": "method.kl_weight=4e-3",
    "reward-weighted-regression": None,
    "adjoint-matching": None,
}
"""By entrant, what its search changes of how it competes; None: nothing."""


@dataclass(frozen=True)
class AsFound(ComparisonStudy):
    """A comparison whose entrants have what their searches found.

    Attributes:
        steps: of the sampler.
    """

    steps: int = SAMPLER["steps"]

    def config(self, cell: ComparisonCell) -> Config:
        config, change = super().config(cell), FOUND.get(cell.method)
        changes = [f"sampler.steps={self.steps}", *([] if change is None else [change])]
        return load_config(None, changes, config.model_dump(mode="json"), load_method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(FOUND), default=list(FOUND))
    parser.add_argument("--reward", required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--held-out", help="a reward to measure only; default: is the shape shown")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=SAMPLER["steps"])
    parser.add_argument("--measurements", type=int, default=3)
    parser.add_argument("--bank", type=int, default=BANK)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/comparison_at_strength"))
    given = parser.parse_args()
    study = AsFound(
        tuple(given.methods),
        (given.reward,),
        given.out,
        seeds=given.seeds,
        first_seed=given.first_seed,
        minutes=given.minutes,
        beta=given.beta,
        held_out=given.held_out,
        bank=given.bank,
        measurements=given.measurements,
        calibrate=True,
        steps=given.steps,
    )
    with show() as progress:
        (outcome,) = race(study, progress)
    write_outcome(given.out, outcome)
    print(comparison_markdown(outcome.rows()))


if __name__ == "__main__":
    main()
