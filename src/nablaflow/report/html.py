"""The report of a run: one HTML file that holds all it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nablaflow.metrics.catalog import METRICS
from nablaflow.report.curves import (
    DARK,
    LIGHT,
    Records,
    Theme,
    begun,
    guard_curve,
    loss_curves,
    loss_terms,
    png,
    reward_curve,
    series,
)
from nablaflow.report.loading import Saved, loading_section
from nablaflow.report.meaning import About, glossary, lead
from nablaflow.report.pictures import by_prompt, check_same_number, shown, to_picture
from nablaflow.report.style import CSS
from nablaflow.report.table import html_table
from nablaflow.report.words import GUARDED, has_passed
from nablaflow.storage.files import write_whole
from nablaflow.typing import Images

_LONGEST = 384  # pixels a side that a picture keeps: a page of hundreds stays a few megabytes
_TINY = 128  # up to this side pixels are shown as squares instead of being blurred


def write_report(
    path: str | Path,
    *,
    title: str,
    config_text: str,
    summary: Mapping[str, Any],
    before: Images,
    after: Images,
    prompts: Sequence[str],
    records: Records,
    saved: Saved | None,
    about: About | None = None,
) -> Path:
    """Write the report.

    Args:
        path: of the file; its folder must exist.
        title: heading of the page.
        config_text: the resolved configuration, as in ``config.yaml``.
        summary: as in ``summary.json``; what it lacks is shown as a dash or left out.
        before: (batch, 3, height, width) in [0, 1], images of the reference.
        after: images of the policy from the same prompts and seeds.
        prompts: one for each image.
        records: of ``metrics.jsonl``.
        saved: the policy, for the lines that load it; None leaves the section out.
        about: what the run did; None leaves out what the page would say of it.

    Returns:
        The path.

    Raises:
        ValueError: images before, images after and prompts differ in number.
    """
    check_same_number(before, after, prompts)
    body = "".join(
        [
            f"<header><h1>{escape(title)}</h1>{_facts(summary)}</header>",
            lead(about),
            _way(summary),
            html_table(summary),
            _pictures(before, after, prompts),
            _curves(records, summary),
            _guard(records, summary),
            loading_section(saved),
            glossary(about),
            _config(config_text),
        ]
    )
    path = Path(path)
    write_whole(path, _page(title, body))
    return path


def _page(title: str, body: str) -> str:
    # The policy has a browser hold the file to its word: nothing is loaded, nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _facts(summary: Mapping[str, Any]) -> str:
    facts = []
    if "updates" in summary:
        facts.append(f"{summary['updates']:,} updates")
    if "seconds" in summary:
        facts.append(_duration(round(summary["seconds"])))
    if "peak_rss_mb" in summary:
        facts.append(f"{summary['peak_rss_mb'] / 1024:.1f} GB of memory at most")
    if "peak_device_mb" in summary:
        facts.append(f"{summary['peak_device_mb'] / 1024:.1f} GB of the GPU's in training")
    return f'<p class="facts">{" · ".join(facts)}</p>' if facts else ""


def _duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _way(summary: Mapping[str, Any]) -> str:
    """The way from the reference's mean reward to the tilt's, and the policy on it."""
    closing = summary.get("closing")
    if closing is None:
        return ""
    low, high = min(0.0, closing), max(1.0, closing)

    def place(fraction: float) -> float:
        return 100.0 * (fraction - low) / (high - low)

    start, end, goal = place(0.0), place(closing), place(1.0)
    stops = "".join(
        f'<div class="stop {name}" style="left:{at:.1f}%;--at:{at:.1f}%"><span>{text}</span></div>'
        for name, at, text in (
            ("reference", start, "reference"),
            ("tilt", goal, "exact tilt"),
            ("policy", end, _aligned(closing, summary.get("closing_se") or 0.0)),
        )
    )
    span = f"left:{min(start, end):.1f}%;width:{abs(end - start):.1f}%"
    return (
        f'<div class="way"><div class="track"></div><div class="gone" style="{span}"></div>'
        f"{stops}</div>"
    )


def _aligned(closing: float, error: float) -> str:
    past = ", past the tilt" if has_passed(closing, error) else ""
    return f"aligned: {closing:.0%} of the way in reward{past}"


def _pictures(before: Tensor, after: Tensor, prompts: Sequence[str]) -> str:
    strips = "".join(
        f"<h3>{escape(shown(prompt))}</h3>"
        f'<div class="pair">{_sheet("reference", prompt, before[rows])}'
        f"{_sheet('aligned', prompt, after[rows])}</div>"
        for prompt, rows in by_prompt(prompts).items()
    )
    return (
        "<h2>Before and after</h2>"
        '<p class="note">Same prompts, same seeds, in the same order on either side.</p>'
        f"{strips}"
    )


def _sheet(side: str, prompt: str, images: Tensor) -> str:
    kind = ' class="tiny"' if max(images.shape[-2:]) <= _TINY else ""
    whose = f"{side} model, seed"
    pictures = "".join(
        f'<img{kind} alt="{escape(f"{whose} {seed}: {shown(prompt)}")}" src="{_inline(image)}">'
        for seed, image in enumerate(images)
    )
    return f'<figure><figcaption>{side}</figcaption><div class="sheet">{pictures}</div></figure>'


def _inline(image: Tensor) -> str:
    picture = to_picture(image)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _curves(records: Records, summary: Mapping[str, Any]) -> str:
    reference, tilt = (
        (summary.get(key) or {}).get("reward_mean") for key in ("reference", "exact_tilt")
    )

    def reward(theme: Theme) -> Figure | None:
        return reward_curve(records, reference=reference, exact_tilt=tilt, theme=theme)

    def loss(theme: Theme) -> Figure | None:
        return loss_curves(records, theme=theme)

    seen = _seen(records, "reward_mean", {"the reference's": reference, "the exact tilt's": tilt})
    figures = _figure("Mean reward of the images that each update trained on", seen, reward)
    terms = "; ".join(f"{name} {_run_of(*term)}" for name, term in loss_terms(records).items())
    figures += _figure("Loss, by its terms", terms, loss)
    return f'<h2>Training</h2><div class="curves">{figures}</div>' if figures else ""


def _guard(records: Records, summary: Mapping[str, Any]) -> str:
    """A curve for each figure of the guard, with its budget."""
    guard = summary.get("guard")
    if guard is None:
        return ""
    start = {**guard["reference"], "kl": 0.0, "diversity": 1.0}
    budgets = guard["budgets"]
    figures = "".join(
        _figure(
            said[0].upper() + said[1:],
            _seen(
                begun(records, metric, start.get(metric)),
                f"guard_{metric}",
                {"the budget": budgets.get(metric)},
            ),
            lambda theme, metric=metric: guard_curve(
                records,
                metric,
                start=start.get(metric),
                budget=budgets.get(metric),
                theme=theme,
            ),
        )
        for metric, (said, _) in {**GUARDED, **_further(budgets)}.items()
    )
    note = (
        "The guard watches for reward hacking: at intervals it samples the same prompts from the "
        "same noise and compares with the reference, which is update 0. A budget is the limit at "
        "which it warns, stops the run or goes back to the best update."
    )
    return f'<h2>Guard</h2><p class="note">{note}</p><div class="curves">{figures}</div>'


def _further(budgets: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Captions, and labels of axes, of the metrics that have a budget by name."""
    named = {name: METRICS[name].label for name in budgets if name in METRICS}
    return {name: (label, name) for name, label in named.items() if name not in GUARDED}


def _seen(records: Records, key: str, levels: Mapping[str, float | None]) -> str:
    """What a curve and its horizontal lines show, in words."""
    known = [f"{name} is {level:.3g}" for name, level in levels.items() if level is not None]
    updates, values = series(records, key)
    return "; ".join([_run_of(updates, values), *known]) if len(values) else ""


def _run_of(updates: Any, values: Any) -> str:
    return (
        f"from {values[0]:.3g} at update {updates[0]:.0f} to {values[-1]:.3g} at update "
        f"{updates[-1]:.0f}, between {values.min():.3g} and {values.max():.3g}"
    )


def _figure(caption: str, seen: str, draw: Callable[[Theme], Figure | None]) -> str:
    """Drawn twice, and the browser shows the one that goes with its background."""
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return ""
    return (
        f"<figure><figcaption>{caption}</figcaption><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(png(dark))}">'
        f'<img alt="{escape(f"Curve: {caption}: {seen}")}" src="{_data_uri(png(light))}">'
        "</picture></figure>"
    )


def _config(config_text: str) -> str:
    return (
        "<details><summary>Configuration</summary>"
        f"<pre><code>{escape(config_text)}</code></pre></details>"
    )
