"""Run folders as data: what a run would have written."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from nablaflow.storage.lock import held


def make_run(root: Path, name: str, **files: str) -> Path:
    run = root / name
    run.mkdir(parents=True)
    with held(run):
        pass
    for file, content in files.items():
        (run / file.replace("_", ".")).write_text(content)
    return run


def column(value: float) -> dict[str, float]:
    figures = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt")
    return {"n": 8, **{k: v for key in figures for k, v in ((key, value), (f"{key}_se", 0.1))}}


def make_finished(root: Path, name: str, reward: str = "warmth", beta: float = 4.0) -> Path:
    """A run that ended, with two pictures of its samples and an adapter."""
    records = [{"update": n, "reward_mean": 0.1 * n, "loss": 1.0 / n} for n in (1, 2, 3)]
    summary = {"reference": column(0.1), "policy": column(0.7), "exact_tilt": column(0.8)}
    settings = {
        "reward": reward,
        "method": {"name": "residual-nabla-db", "beta": beta},
        "training": {"updates": 3},
        "seed": 7,
    }
    run = make_run(
        root,
        name,
        metrics_jsonl="".join(json.dumps(record) + "\n" for record in records),
        summary_json=json.dumps({**summary, "closing": 0.86, "closing_se": 0.02}),
        config_yaml=yaml.safe_dump(settings),
    )
    (run / "samples").mkdir()
    for update in (1, 3):
        Image.new("RGB", (4, 4)).save(run / "samples" / f"step-{update:06d}.png")
    (run / "lora").mkdir()
    (run / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    return run
