"""Two errors apart: what a target reaches without any training, and how far the policy is from it.

    python benchmarks/error_budget.py warmth preference hue digits ring-10 ring-50

prints for each case, and writes to benchmarks/error_budget.json,

(a) the target's own error: what untrained sampling with exactly that target reaches, for the
    published step (sigma_k^2) and the exact one: closed of the way, diversity, distance to tilt;
(b) the fit's error: after ``--updates`` of residual nabla-DB, what the policy reaches, and by step
    how far its shift is from the target along its own path, in nats, beside the target's own size;
(c) what the chain's own adjoint says at the reference's states, weighted by exp(beta r): the slope
    of the lean adjoint on the forward-looking gradient, and their cosine, by step.

``digits`` and ``patches`` are the models of pixel_models.py; ``hue`` is a narrow bump in hue, a
reward with a strong bend; ``stripe`` a bent reward on the digits that no choice was made on, at the
beta that ``beta: auto`` gives it; ``ring-K`` is the laboratory's ring at K steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import trajectory_noise, value_step
from nablaflow.estimators import Adjoint, ForwardLooking, Networks
from nablaflow.estimators import Path as Trajectories
from nablaflow.evaluation.bank import reference_bank, sample_states
from nablaflow.evaluation.measure import measure_states
from nablaflow.exact import evaluate, named_problem
from nablaflow.exact.contenders import TUNED
from nablaflow.exact.training import train
from nablaflow.methods import GuidedSampling, ResidualNablaDB
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.summary import SampleSet, Yardstick, closing
from nablaflow.models import DiffusionModel, fingerprint
from nablaflow.rewards import CALLABLE, NamedReward
from nablaflow.rewards.pixels import chroma
from nablaflow.runs.setup import Parts, prepare

MODELS = Path(__file__).parent / "models"
STEPS = ("published", "exact")
Figures = dict[str, Any]


def hue(images: Tensor, prompts: list[str]) -> Tensor:
    """How much of an image's colour lies in a narrow bump about violet."""
    first, second = chroma(images)
    strength = (first.square() + second.square() + 1e-6).sqrt()
    bump = torch.exp(8.0 * (torch.cos(torch.atan2(second, first) - math.radians(285)) - 1.0))
    return (strength * bump).mean((1, 2)) / (strength.mean((1, 2)) + 0.02)


def upper(images: Tensor, prompts: list[str]) -> Tensor:
    """Ink in the upper half less that in the lower half: linear in the pixels."""
    ramp = torch.linspace(8.0, -8.0, images.shape[2]).to(images)
    return (images.mean(1) * ramp[:, None]).mean((1, 2))


def stripe(images: Tensor, prompts: list[str]) -> Tensor:
    """The correlation of an image's ink with a diagonal stripe: bent, between -1 and 1."""
    across, down = (torch.linspace(-1.0, 1.0, n).to(images) for n in images.shape[:1:-1])
    wanted = torch.exp(-((across - down[:, None]) / 0.3).square())
    ink = images.mean(1)
    ink, wanted = ink - ink.mean((1, 2), keepdim=True), wanted - wanted.mean()
    lengths = ink.square().sum((1, 2)).sqrt() * wanted.square().sum().sqrt()
    return (ink * wanted).sum((1, 2)) / (lengths + 1e-3)


PIXELS: Figures = {
    "prompts": None,
    "sampler": {"name": "ddim", "steps": 20},
    "training": {"prompts_per_update": 1, "images_per_prompt": 64},
    "evaluation": {"n": 1024, "batch": 256, "bank": 4096},
}
CASES: dict[str, tuple[Figures, Callable[..., Tensor] | None]] = {
    "warmth": ({}, None),
    "preference": ({"reward": "preference", "method": {"beta": 0.25}}, None),
    "hue": ({"method": {"beta": 6.0}}, hue),
    "digits": ({**PIXELS, "model": str(MODELS / "digits")}, upper),
    "stripe": ({**PIXELS, "model": str(MODELS / "digits"), "method": {"beta": 16.0}}, stripe),
    "patches": (
        {
            **PIXELS,
            "model": str(MODELS / "patches"),
            "reward": "brightness",
            "method": {"beta": 8.0},
        },
        None,
    ),
}
"""What each case changes of the demo's settings, and its reward where it is none of the list's."""


def merged(base: Figures, over: Figures) -> Figures:
    result = dict(base)
    for name, value in over.items():
        inner = base.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        result[name] = merged(inner, value) if both and inner else value
    return result


def prepared(name: str, seed: int, updates: int, over: Figures | None = None) -> Parts:
    """A case ready to train, with ``over`` in place of what the case and the demo say.

    A rollout for each update, unless ``over`` says otherwise: what is compared here is the target.
    """
    changes, function = CASES[name]
    settings = merged(demo_settings(), {"guard": None, "seed": seed, "output_dir": "runs/budget"})
    settings = merged(settings, {"evaluation": {"n": 1024}})
    own = {"updates": updates, "trackers": [], "updates_per_rollout": 1}
    settings = merged(settings, {"training": own})
    settings = merged(merged(settings, changes), over or {})
    reward = None if function is None else NamedReward(name, function)
    if reward is not None:
        settings["reward"] = f"{CALLABLE}{name}"
    return prepare(parse_config(settings), Path("runs/budget"), reward)


# --- (a) and (b): what is reached -----------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Measures states against the case's own bank."""

    parts: Parts
    yardstick: Yardstick

    @cached_property
    def tilt(self) -> Figures:
        """The exact tilt's own figures."""
        found = self.yardstick.exact_tilt()
        assert found is not None, "too few of the bank's samples count at this beta"
        return found

    @staticmethod
    def of(parts: Parts) -> Judge:
        settings = parts.config.evaluation
        states = reference_bank(
            parts.model,
            fingerprint(parts.model.pipeline),
            parts.evaluated,
            parts.config.sampler,
            settings.bank,
            batch=settings.batch,
            on_progress=lambda done: None,
        )
        samples = _samples(parts, states)
        return Judge(parts, Yardstick.of(samples, parts.config.method.beta))

    def figures(self, states: Tensor) -> Figures:
        samples = _samples(self.parts, states)
        column, tilt, bank = self.yardstick.column(samples), self.tilt, self.yardstick.bank
        start = reward_mean(bank.rewards, bank.prompt_index)
        reference = {"reward_mean": start.value, "reward_mean_se": start.se}
        way = closing(reference, column, tilt)
        return {
            "way": way and way.value,
            "way_se": way and way.se,
            "diversity_over_tilts": column["diversity"] / tilt["diversity"],
            "distance": column["distance_to_tilt"],
            "distance_se": column["distance_to_tilt_se"],
        }


def _samples(parts: Parts, states: Tensor) -> SampleSet:
    batch = parts.config.evaluation.batch
    return measure_states(
        parts.model, parts.reward, states, parts.evaluated, batch=batch, on_progress=lambda n: None
    ).samples


def trained_states(parts: Parts) -> Tensor:
    """States of the policy as it stands, as many as the configuration says."""
    settings = parts.config.evaluation
    return sample_states(
        parts.model,
        parts.evaluated,
        settings.n,
        seed=settings.seed,
        batch=settings.batch,
        purpose="evaluation",
        on_progress=lambda done: None,
    )


def guided(parts: Parts, step: str, n: int) -> Tensor:
    """States of the untrained model, sampled with the target in its kernels."""
    method = GuidedSampling(beta=parts.config.method.beta, gamma="one", step=step)
    networks = Networks(parts.model, parts.reward)
    prompts = [parts.evaluated[row % len(parts.evaluated)] for row in range(n)]
    parts_of = range(0, n, 64)
    return torch.cat(
        [
            method.sample(
                networks, prompts[s : s + 64], trajectory_noise(list(range(s, min(n, s + 64))))
            )
            for s in parts_of
        ]
    )


# --- (b) and (c): by step -------------------------------------------------------------------------


def path_of(
    model: DiffusionModel, prompts: list[str], *, reference: bool, seed: int
) -> Trajectories:
    """All transitions of trajectories of the reference, or of the policy."""
    condition = model.condition(prompts)
    keep = torch.arange(1, model.process.steps + 1).expand(len(prompts), -1)

    def sampled() -> Any:
        noise = trajectory_noise([seed + row for row in range(len(prompts))])
        return model.sample(prompts, noise, keep=keep, keep_states=True)

    if reference:
        with model.reference():
            found = sampled()
    else:
        found = sampled()
    levels = value_step("exact", model.process).level
    return Trajectories(
        found.x0, found.states, condition, prompts, found.transitions, levels=levels
    )


@torch.no_grad()
def fit_by_step(networks: Networks, prompts: list[str], method: ResidualNablaDB) -> Figures:
    """Nats by k: of the policy's shift less its target, and of the target itself."""
    process = networks.model.process
    path = path_of(networks.model, prompts, reference=False, seed=10_000)
    off, size = torch.zeros(process.steps + 1), torch.zeros(process.steps + 1)
    for batch in path.parts():
        metrics = method.losses(batch, networks).metrics
        off.index_add_(0, batch.transitions.k, metrics["unfollowed_nats"])
        size.index_add_(0, batch.transitions.k, metrics["asked_nats"])
    return {"off": (off[1:] / len(path)).tolist(), "target": (size[1:] / len(path)).tolist()}


def adjoint_by_step(networks: Networks, prompts: list[str], beta: float) -> Figures:
    """Slope of the adjoint A_k on the forward-looking gradient at x_k, and their cosine, by k."""
    model = networks.model
    path = path_of(model, prompts, reference=True, seed=20_000)
    looking = ForwardLooking(gamma="one", predictor="reference")
    ahead = looking.estimate(path, networks, beta).target.flatten(1).double()
    adjoint = Adjoint().estimate(path, networks, beta).target.flatten(1).double()
    with torch.no_grad():
        rewards = networks.reward(model.decode(path.x0), prompts).double()
    index = torch.tensor([prompts.index(prompt) for prompt in prompts])
    weights = torch.zeros_like(rewards)
    for prompt in index.unique():
        rows = index == prompt
        weights[rows] = torch.softmax(beta * rewards[rows], 0)
    w = weights[path.transitions.trajectory]
    found: Figures = {"slope": [], "cosine": []}
    for k in range(1, model.process.steps + 1):
        rows = path.transitions.k == k
        along, ones, twos = (
            (w[rows, None] * first[rows] * second[rows]).sum().item()
            for first, second in ((adjoint, ahead), (ahead, ahead), (adjoint, adjoint))
        )
        found["slope"].append(along / max(ones, 1e-30))
        found["cosine"].append(along / max(math.sqrt(ones * twos), 1e-30))
    return found


# --- cases ----------------------------------------------------------------------------------------


def image_case(name: str, updates: int, n: int, seed: int, per_rollout: int) -> Figures:
    shared = {"training": {"updates_per_rollout": per_rollout}}
    parts = prepared(name, seed, updates, shared)
    judge = Judge.of(parts)
    found: Figures = {f"untrained, {s}": judge.figures(guided(parts, s, n)) for s in STEPS}
    prompts = [parts.evaluated[row % len(parts.evaluated)] for row in range(64)]
    networks = Networks(parts.model, parts.reward)
    method = parts.config.method
    assert isinstance(method, ResidualNablaDB)
    found["adjoint"] = adjoint_by_step(networks, prompts, method.beta)
    for _ in range(updates):
        parts.trainer.step()
    found["trained"] = judge.figures(trained_states(parts))
    found["fit"] = fit_by_step(networks, prompts, method)
    return found


def ring_case(steps: int, updates: int, n: int, seed: int) -> Figures:
    problem = replace(named_problem("ring"), steps=steps)
    beta = problem.beta
    untrained = {s: GuidedSampling(beta=beta, gamma="one", step=s) for s in STEPS}
    found: Figures = {}
    for step, method in untrained.items():
        result = evaluate(problem, method, n=8 * n, seed=seed)
        found[f"untrained, {step}"] = {"times_floor": result.energy_distance / result.floor}
    method = ResidualNablaDB(beta=beta)
    result = evaluate(
        problem, method, updates=updates, batch=256, seed=seed, n=8 * n, settings=TUNED
    )
    found["trained"] = {"times_floor": result.energy_distance / result.floor}
    model = train(problem, method, updates, 256, seed, TUNED, lambda done: None).model
    networks = Networks(model, problem.named_reward())
    prompts = [""] * 256
    found["fit"] = fit_by_step(networks, prompts, method)
    found["adjoint"] = adjoint_by_step(networks, prompts, beta)
    return found


def show(name: str, found: Figures) -> None:
    print(f"\n{name}")
    for what, figures in found.items():
        cells = {
            key: " ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.3f}"
            for key, value in figures.items()
        }
        print(f"  {what}: " + "; ".join(f"{key} {cell}" for key, cell in cells.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="+", help=f"{', '.join(CASES)}, ring-K")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--n", type=int, default=256, help="images of each untrained target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates-per-rollout", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for name in given.cases:
        if name.startswith("ring-"):
            found = ring_case(int(name.removeprefix("ring-")), 300, given.n, given.seed)
        else:
            found = image_case(name, given.updates, given.n, given.seed, given.updates_per_rollout)
        show(name, found)
        kept[name] = {"updates": given.updates, "seed": given.seed, **found}
        given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
