"""What an update costs by the number of processes: a model fitted on 1 and 2, and held against 4.

    python benchmarks/scaling.py              # on this machine, over gloo
    python benchmarks/scaling.py --large      # large models, by arithmetic on shapes alone

prints tables and writes runs/benchmark-scaling.json. The clock is each process's processor time,
which does not count other work on the machine nor the wait for other processes; it is the slowest
process's that counts, since the others wait for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

FITTED, HELD_OUT = (1, 2), (4,)
RECIPES = {
    "residual-nabla-db, 32 trajectories": [],
    "nabla-td, 32 trajectories": ["method=nabla-td"],
    "residual-nabla-db, all weights": ["adapter.kind=full", "optimizer.learning_rate=1e-5"],
}


# --- one process ----------------------------------------------------------------------------------


def measure(updates: int, overrides: list[str]) -> dict[str, float] | None:
    """Median processor seconds of an update's parts, of the slowest process; None on the others.

    The first update is not counted.
    """
    from accelerate.utils import gather_object

    from nablaflow.config.defaults import demo_settings
    from nablaflow.config.overrides import apply_overrides
    from nablaflow.config.recipe import parse_config
    from nablaflow.runs import setup

    quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null", "training.device=cpu"]
    config = parse_config(apply_overrides(demo_settings(), [*quiet, *overrides]))
    parts = setup.prepare(config, config.output_dir)
    trainer = parts.trainer
    trainer.clock = time.process_time
    records = [trainer.step() for _ in range(updates + 1)][1:]
    own = []
    for record in records:
        rollout, estimate = record["rollout_seconds"], record.get("estimate_seconds", 0.0)
        rest = record["seconds"] - rollout - estimate
        own.append({"rollout": rollout, "estimate": estimate, "gradient and step": rest})
    found: list[list[dict[str, float]]] = gather_object([own])
    main = parts.accelerator.is_main_process
    parts.accelerator.end_training()
    if not main:
        return None
    slowest = [
        {k: max(row[k] for row in rows) for k in rows[0]} for rows in zip(*found, strict=True)
    ]
    return {name: median(row[name] for row in slowest) for name in slowest[0]}


def launched(processes: int, updates: int, overrides: list[str]) -> dict[str, float]:
    """`measure` in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", __file__, f"--updates={updates}", "--one", str(out)),
            *overrides,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


# --- the model ------------------------------------------------------------------------------------


def fit(measured: dict[int, float]) -> tuple[float, float]:
    """Seconds that every process spends, and seconds that they divide: t(P) = a + b / P."""
    one, two = (measured[count] for count in FITTED)
    divided = 2.0 * (one - two)
    return one - divided, divided


def table(name: str, measured: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """Print what was measured and what the model says; the rows."""
    print(f"\n{name}\n\n| part | a, s | b, s | P = 1 | P = 2 | P = 4, predicted | measured |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for part in measured[1]:
        seconds = {count: found[part] for count, found in measured.items()}
        if not any(seconds.values()):
            continue
        same, divided = fit(seconds)
        said = same + divided / HELD_OUT[0]
        rows.append({"part": part, "a": same, "b": divided, "predicted": said, "seconds": seconds})
        shown = (same, divided, seconds[1], seconds[2], said, seconds[4])
        print(f"| {part} | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    return rows


# --- large models, on shapes alone ----------------------------------------------------------------


def large() -> dict[str, dict[str, float]]:
    """TFLOPs of a denoiser's forward pass at one state and of a decode; parameters in millions."""
    import torch
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    from nablaflow.models.costs import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL
    from nablaflow.models.flow_size import counted

    def count(network: Any, **given: Any) -> tuple[float, float]:
        with torch.no_grad(), torch.device("meta"), counted() as counter:
            network(**{k: v() if callable(v) else v for k, v in given.items()})
        parameters = sum(value.numel() for value in network.parameters())
        return counter.get_total_flops() / 1e12, parameters / 1e6

    with torch.device("meta"):
        sd3 = SD3Transformer2DModel(  # stabilityai/stable-diffusion-3.5-medium
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            in_channels=16,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        flux = FluxTransformer2DModel(guidance_embeds=True)  # black-forest-labs/FLUX.1-dev
    found = {
        "SD 3.5 medium, 1024²": count(
            sd3,
            hidden_states=lambda: torch.zeros(1, 16, 128, 128),
            encoder_hidden_states=lambda: torch.zeros(1, 333, 4096),
            pooled_projections=lambda: torch.zeros(1, 2048),
            timestep=lambda: torch.zeros(1),
        ),
        "FLUX.1, 1024²": count(
            flux,
            hidden_states=lambda: torch.zeros(1, 4096, 64),
            encoder_hidden_states=lambda: torch.zeros(1, 512, 4096),
            pooled_projections=lambda: torch.zeros(1, 768),
            timestep=lambda: torch.zeros(1),
            img_ids=lambda: torch.zeros(4096, 3),
            txt_ids=lambda: torch.zeros(512, 3),
            guidance=lambda: torch.zeros(1),
        ),
    }
    decode = STABLE_DIFFUSION_XL.decoder_flops() / 1e12
    rows = {
        "SD 1.5, 512²": (
            STABLE_DIFFUSION_1.denoiser_flops() / 1e12,
            859.5,
            STABLE_DIFFUSION_1.decoder_flops() / 1e12,
        ),
        "SDXL, 1024²": (STABLE_DIFFUSION_XL.denoiser_flops() / 1e12, 2567.5, decode),
        **{name: (*values, decode) for name, values in found.items()},
    }
    keys = ("denoiser", "parameters", "decoder")
    return {name: dict(zip(keys, values, strict=True)) for name, values in rows.items()}


RATE = 400e12  # FLOPs a second of a card in bf16: 40 % of an H100's 989; assumed
DECODER_RATE = 45e12  # in float32 with TF32 off: two thirds of an H100's 67; assumed
LINK, NETWORK = (
    300e9,
    40e9,
)  # bytes a second of an all-reduce's ring, in a machine and between; assumed
RANK = {
    "SD 1.5, 512²": 1.6,
    "SDXL, 1024²": 11.6,
    "SD 3.5 medium, 1024²": 5.9,
    "FLUX.1, 1024²": 11.6,
}
STEPS, TRAINED, TRAJECTORIES, GUIDED = 20, 4, 512, 2
DISTILLED = ("FLUX.1",)  # one pass does what guidance needs two for


def seconds_of(name: str, row: dict[str, float], processes: int) -> dict[str, float]:
    """Of one update by the default method, checkpointed, with 512 trajectories on all cards."""
    from nablaflow.models.costs import DECODES, PASSES, RECOMPUTED

    model = name.split(",")[0]
    guided = 1 if model in DISTILLED else GUIDED
    each = TRAJECTORIES / processes
    forward, decode = guided * row["denoiser"] * 1e12 / RATE, row["decoder"] * 1e12 / DECODER_RATE
    link = LINK if processes <= 8 else NETWORK
    ring = 2 * (processes - 1) / processes / link
    return {
        "rollout": each * (STEPS * forward + decode),
        "gradient": each * TRAINED * ((PASSES + RECOMPUTED) * forward + DECODES * decode),
        "LoRA's all-reduce": 4e6 * LORA[model] * ring,
        "all weights' all-reduce": 4e6 * row["parameters"] * ring,
    }


def print_large() -> dict[str, Any]:
    rows = large()
    print("| model | denoiser, TFLOP | decoder, TFLOP | parameters, M |\n|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['denoiser']:.2f} | {row['decoder']:.2f} | {row['parameters']:.0f} |"
        )
    found: dict[str, Any] = {"shapes": rows, "updates": {}}
    print("\n| model | cards | rollout, s | gradient, s | LoRA's reduction, s | all weights', s |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        for processes in (8, 64, 512):
            parts = seconds_of(name, row, processes)
            found["updates"][f"{name}, {processes}"] = parts
            shown = " | ".join(f"{value:.3g}" for value in parts.values())
            print(f"| {name} | {processes} | {shown} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-scaling.json"))
    parser.add_argument("--large", action="store_true", help="large models, on shapes alone")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given, overrides = parser.parse_known_args()
    if given.one is not None:
        found = measure(given.updates, overrides)
        if found is not None:
            given.one.write_text(json.dumps(found))
        return
    if given.large:
        results: dict[str, Any] = print_large()
    else:
        results = {}
        for name, settings in RECIPES.items():
            by_count = {
                count: launched(count, given.updates, settings) for count in (*FITTED, *HELD_OUT)
            }
            results[name] = table(name, by_count)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
