"""The published form here beside the authors' own loop: the same loss, and how many seconds.

    python benchmarks/as_published.py
    python benchmarks/as_published.py --device cuda --model random:sd15

Both take one rollout of the embedded model, or of ``--model``, and add the gradients of one update
to the same policy and flow network, in turns, in one process. `Loop` renders the authors' code
(github.com/lzzcd001/nabla-gfn, train_nablagfn.py) in words of its own: one column of transitions
after the other, a pass of the network for each quantity and a backward pass for each gradient.
The rollout, which is alike in both, is timed beside them. A table is printed, and all times are in
runs/benchmark-as-published.json; so is the load of the machine meanwhile. On a processor seconds
are its own; on a GPU they are the clock's, which is read when the GPU has nothing left to do.

Of the authors' code are left out: precision below float32, gradient scaler, logging and what comes
to the reported loss as a constant (at the end of a trajectory the square of the policy's score).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import trajectory_noise
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import ResidualNablaDB
from nablaflow.models import Condition
from nablaflow.runs.setup import Parts, prepare
from nablaflow.training.optimization import add_gradients

BETA, REGULARIZATION, GUIDANCE = 40.0, 7.0, 5.0
PUBLISHED = {
    **ResidualNablaDB.published(BETA, REGULARIZATION).model_dump(exclude_unset=True),
    "name": "residual-nabla-db",
}


class Loop:
    """The authors' loop, for a model that predicts noise and is sampled by DDIM with eta 1."""

    def __init__(self, networks: Networks, steps: int) -> None:
        self.networks, self.model = networks, networks.model
        pipeline: Any = getattr(networks.model, "pipeline")  # noqa: B009, of no declared class
        scheduler: Any = DDIMScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        self.kept = scheduler.alphas_cumprod.to(self.model.device)
        self.timesteps = scheduler.timesteps.flip(0).to(self.model.device)
        self.stride = len(self.kept) // steps

    def add_gradients(self, batch: TrainingBatch) -> float:
        """Of the mean loss over a batch whose trajectories have equally many transitions."""
        columns = columns_of(batch)
        total = 0.0
        for rows in columns:
            loss = self.loss(batch[rows]) / len(columns)
            loss.backward()
            total += loss.item()
        return total

    def loss(self, batch: TrainingBatch) -> Tensor:
        """Of one transition of each trajectory."""
        t, prompts = batch.transitions, batch.prompts
        here = self.timesteps[t.k - 1]
        then, last = (here - self.stride).clamp_min(0), (t.k == 1)[:, None, None, None]
        x = t.x.clone().requires_grad_()
        with self.model.reference():
            noise = self.noise(x, here, batch.condition)
        mean = self.mean(x, noise, here, then)
        prior = self.score(mean.detach(), t.x_next, here, then)
        prior_back = self.by_state(mean, x, t.x_next, here, then, keep=False)

        noise = self.noise(x, here, batch.condition)
        mean = self.mean(x, noise, here, then)
        score = self.score(mean, t.x_next, here, then)
        back = self.by_state(mean, x, t.x_next, here, then, keep=True)

        following = t.x_next.clone().requires_grad_()
        ahead = self.noise(following, then, batch.condition)
        value_then = self.value(following, ahead, then, prompts, keep=False)
        value_here = self.value(x, noise, here, prompts, keep=True)
        flow_then = self.flow(t.x_next, then, batch.condition)
        flow_here = self.flow(t.x, here, batch.condition)

        forward = score - prior - value_then - torch.where(last, 0.0, flow_then)
        reverse = torch.where(last, 0.0, back - prior_back + flow_here + value_here)
        terminal = torch.where(last, flow_then, 0.0)
        squares = forward.square() + reverse.square() + terminal.square()
        return squares.mean() + REGULARIZATION * (noise - t.epsilon).square().mean()

    def noise(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Of the guided network that is active, for both ends at once."""
        given = (condition.negative, condition)
        hidden = torch.cat([end.hidden for end in given if end and end.hidden is not None])
        network = self.model.network
        both = network(torch.cat([x, x]), torch.cat([timestep, timestep]), hidden).sample
        plain, prompted = both.chunk(2)
        return plain + GUIDANCE * (prompted - plain)

    def kept_at(self, timestep: Tensor) -> Tensor:
        """alpha_bar; of the last state 1, since there it is the image's own."""
        return self.kept[timestep][:, None, None, None]

    def clean(self, x: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        kept = torch.where((timestep == 0)[:, None, None, None], 1.0, self.kept_at(timestep))
        return (x - (1 - kept).sqrt() * noise) / kept.sqrt()

    def variance(self, here: Tensor, then: Tensor) -> Tensor:
        before, after = self.kept_at(here), self.kept_at(then)
        return (1 - after) / (1 - before) * (1 - before / after)

    def mean(self, x: Tensor, noise: Tensor, here: Tensor, then: Tensor) -> Tensor:
        """Of the next state."""
        after = self.kept_at(then)
        direction = (1 - after - self.variance(here, then)).sqrt()
        return after.sqrt() * self.clean(x, noise, here) + direction * noise

    def score(self, mean: Tensor, following: Tensor, here: Tensor, then: Tensor) -> Tensor:
        """d/dx_{k-1} of the log density of the next state."""
        return (mean - following) / self.variance(here, then)

    def by_state(
        self, mean: Tensor, x: Tensor, following: Tensor, here: Tensor, then: Tensor, *, keep: bool
    ) -> Tensor:
        """d/dx_k of the same."""
        square = (following - mean).square().sum()
        (slope,) = torch.autograd.grad(square, x, retain_graph=keep)
        return -slope / (2 * self.variance(here, then))

    def value(
        self, x: Tensor, noise: Tensor, timestep: Tensor, prompts: list[str], *, keep: bool
    ) -> Tensor:
        """Beta gamma grad r of the one-step prediction.

        gamma is alpha_bar, and 1 at the end as here; theirs is 0.99915 there.
        """
        images = self.model.decode(self.clean(x, noise, timestep))
        scores = self.networks.reward(images, prompts)
        (slope,) = torch.autograd.grad(scores.sum(), x, retain_graph=keep)
        end = (timestep == 0)[:, None, None, None]
        return BETA * torch.where(end, 1.0, self.kept_at(timestep)) * slope

    def flow(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert self.networks.flow is not None
        return self.networks.flow(x, timestep, condition)


def columns_of(batch: TrainingBatch) -> list[Tensor]:
    """Rows of the first, second, ... transition of every trajectory."""
    owner = batch.transitions.trajectory
    rows = [(owner == one).nonzero()[:, 0] for one in owner.unique()]
    return list(torch.stack(rows, dim=1))


def prepared(trajectories: int, overrides: list[str]) -> Parts:
    """The demo, by the published form, on batches of so many trajectories."""
    quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null"]
    own = [
        f"sampler.guidance_scale={GUIDANCE}",
        "flow={channels: [64, 128]}",
        "training.data=previous-rollout",  # what the penalty is for; trained is what is handed over
        "training.prompts_per_update=1",
        f"training.images_per_prompt={trajectories}",
    ]
    values = apply_overrides({**demo_settings(), "method": PUBLISHED}, [*quiet, *own, *overrides])
    config = parse_config(values)
    return prepare(config, config.output_dir)


def rolled_out(parts: Parts, trajectories: int) -> Callable[[], TrainingBatch]:
    """A function that makes the rollout of one update, the same each time."""
    core, method, process = parts.trainer.core, parts.trainer.method, parts.model.process
    generator = torch.Generator().manual_seed(0)
    keep = method.draw(trajectories, process, parts.config.strata, generator)
    prompts = [parts.prompts[row % len(parts.prompts)] for row in range(trajectories)]
    noise = range(trajectories)
    return lambda: core.batch(core.rollout(prompts, trajectory_noise(list(noise)), keep))


def clock(device: torch.device) -> float:
    """Seconds: a processor's own, or the clock's once a GPU has done all that it was given."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def gradients_of(parts: Parts, work: Callable[[], float]) -> tuple[float, list[Tensor], float]:
    """The loss, the gradient of each parameter that trains, and the seconds."""
    objective = parts.trainer.core.objective
    objective.zero_grad(set_to_none=True)
    began = clock(parts.model.device)
    loss = work()
    took = clock(parts.model.device) - began
    found = [p.grad for p in objective.parameters() if p.requires_grad and p.grad is not None]
    return loss, found, took


def both(parts: Parts, batch: TrainingBatch) -> dict[str, Callable[[], float]]:
    """The two ways to add the gradients of a batch."""
    core, loop = parts.trainer.core, Loop(parts.trainer.networks, parts.model.process.steps)

    def ours() -> float:
        size = parts.config.training.micro_batch
        return add_gradients(core.objective, batch, size)["loss"].item() / len(batch)

    return {"theirs": lambda: loop.add_gradients(batch), "ours": ours}


def measure(trajectories: int, repeats: int, overrides: list[str]) -> dict[str, Any]:
    """Losses, how far the gradients are apart, and seconds, in turns."""
    parts = prepared(trajectories, overrides)
    roll = rolled_out(parts, trajectories)
    batch = roll()
    ways = both(parts, batch)
    found = {name: gradients_of(parts, work)[:2] for name, work in ways.items()}
    seconds: dict[str, list[float]] = {"rollout": [], **{name: [] for name in ways}}
    for _ in range(repeats):
        began = clock(parts.model.device)
        roll()
        seconds["rollout"].append(clock(parts.model.device) - began)
        for name, work in ways.items():
            seconds[name].append(gradients_of(parts, work)[2])
    flat = {name: torch.cat([g.flatten() for g in found[name][1]]) for name in ways}
    apart = (flat["ours"] - flat["theirs"]).norm() / flat["theirs"].norm()
    return {
        "trajectories": trajectories,
        "transitions": len(batch),
        "loss": {name: loss for name, (loss, _) in found.items()},
        "gradients_apart": apart.item(),
        "seconds": seconds,
        "load": os.getloadavg()[0],
    }


def ratios(row: dict[str, Any]) -> dict[str, list[float]]:
    """Theirs over ours, by repeat: of the gradients, and of a whole update with its rollout."""
    times = list(
        zip(*(row["seconds"][name] for name in ("rollout", "theirs", "ours")), strict=True)
    )
    return {
        "gradients": [theirs / ours for _, theirs, ours in times],
        "update": [(roll + theirs) / (roll + ours) for roll, theirs, ours in times],
    }


def told(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="The published form beside the authors' loop")
    parser.add_argument("--trajectories", nargs="*", type=int, default=[2, 4, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="nano", help="one that is sampled by DDIM in latents")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-as-published.json"))
    parser.add_argument("settings", nargs="*", help="key.sub=value")
    given = parser.parse_args()
    own = [f"model={given.model}", f"training.device={given.device}", *given.settings]
    rows = []
    print("| trajectories | loss: theirs, ours | gradients: theirs over ours | update | load |")
    print("|---|---|---|---|---|")
    for trajectories in given.trajectories:
        row = measure(trajectories, given.repeats, own)
        rows.append({**row, "ratios": ratios(row)})
        losses = ", ".join(f"{row['loss'][name]:.5g}" for name in ("theirs", "ours"))
        ratio = " | ".join(told(values) for values in ratios(row).values())
        print(f"| {trajectories} | {losses} | {ratio} | {row['load']:.1f} |", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
