"""The metrics by name. To add one, write its file here and its line in ``METRICS``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nablaflow.errors import UserError, nearest
from nablaflow.metrics import kid, pair_diversity, prdc, scores, vendi
from nablaflow.metrics.contract import CHOSEN, Metric
from nablaflow.metrics.fid import measure_frechet
from nablaflow.metrics.kid import measure_kernel_distance
from nablaflow.metrics.lpips_distance import lpips_network, measure_lpips
from nablaflow.metrics.pair_diversity import measure_diversity
from nablaflow.metrics.scores import measure_clip_score, measure_reward
from nablaflow.metrics.vendi import measure_vendi


def _a_prompt(images: int) -> Callable[[int, int], int]:
    return lambda prompts, dim: images * prompts


def _full_rank(prompts: int, dim: int) -> int:
    return max(2 * prompts, dim + 1)


def _neighbours(prompts: int, dim: int) -> int:
    return max(2 * prompts, prdc.LEAST)


METRICS: dict[str, Metric] = {
    "reward": Metric("mean reward", "rewards", measure_reward, _a_prompt(scores.LEAST)),
    "diversity": Metric("diversity", CHOSEN, measure_diversity, _a_prompt(pair_diversity.LEAST)),
    "vendi": Metric("Vendi score", CHOSEN, measure_vendi, _a_prompt(vendi.LEAST)),
    "frechet": Metric("Fréchet distance", CHOSEN, measure_frechet, _full_rank, distance=True),
    "mmd": Metric(
        "kernel distance", CHOSEN, measure_kernel_distance, kid.least_images, distance=True
    ),
    "precision": Metric("precision", CHOSEN, prdc.measure_precision, _neighbours),
    "recall": Metric("recall", CHOSEN, prdc.measure_recall, _neighbours),
    "density": Metric("density", CHOSEN, prdc.measure_density, _neighbours),
    "coverage": Metric("coverage", CHOSEN, prdc.measure_coverage, _neighbours),
    "fid": Metric("FID", "inception", measure_frechet, _full_rank, distance=True),
    "kid": Metric("KID", "inception", measure_kernel_distance, kid.least_images, distance=True),
    "lpips": Metric(
        "LPIPS diversity", "pictures", measure_lpips, _a_prompt(pair_diversity.LEAST), lpips_network
    ),
    "clip-score": Metric("CLIPScore", "clip-score", measure_clip_score, _a_prompt(scores.LEAST)),
}
"""Name to metric; docs/metrics.md has what each says, and when it lies."""

DEFAULT = ("reward", "diversity", "vendi", "frechet", "mmd")
"""What needs no more than the chosen features; one with too few images is left out."""


def chosen_metrics(names: Sequence[str], setting: str = "--metrics") -> dict[str, Metric]:
    """The metrics of some names, in their order.

    Args:
        setting: where the names come from, for the message.

    Raises:
        UserError: there is no such metric.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"{setting}: no metric {name!r}; {nearest(name, METRICS)}")
    return {name: METRICS[name] for name in dict.fromkeys(names)}
