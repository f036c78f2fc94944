"""What a report's figures mean, for a reader who has not read the paper."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, metadata

from nablaflow.metrics.tilt import MIN_EFFECTIVE_SAMPLE_SIZE

PAGES = {"the report's figures": "read_the_report.md", "how to choose beta": "choose_beta.md"}


@dataclass(frozen=True)
class About:
    """What a run did, by name.

    Attributes:
        beta: the tilt.
        aims_at_tilt: whether that is the method's goal.
        held_out: the reward that is measured and not trained; None without one.
    """

    method: str
    reward: str
    beta: float
    aims_at_tilt: bool
    held_out: str | None = None


def lead(about: About | None) -> str:
    """What the run did and what its goal is, as HTML; nothing where that is not known."""
    if about is None:
        return ""
    return (
        '<section class="lead">'
        f"<p>The reference is the pretrained model. The aligned model was trained by "
        f"<code>{escape(about.method)}</code> toward the reward <code>{escape(about.reward)}</code>"
        f". {_goal(about)} <em>exact tilt</em>, the reference's own distribution of images x, each "
        "image weighted by its reward r:</p>"
        '<p class="formula">p*(x | prompt) ∝ p<sub>ref</sub>(x | prompt) · '
        f"exp(beta · r(x, prompt)), &nbsp; beta = {about.beta:g}</p>"
        "<p>With beta = 0 that is the reference; the larger beta, the more reward and the less "
        "of the reference's variety. A good run raises the reward and keeps diversity and the "
        'distances near those of the exact tilt. <a href="#meaning">What each figure means</a></p>'
        "</section>"
    )


def _goal(about: About) -> str:
    if about.aims_at_tilt:
        return "Its goal is the"
    return "With these settings it has another goal, and may pass the"


def glossary(about: About | None) -> str:
    """Each figure, its unit and how to read it, as HTML."""
    entries = "".join(
        f'<dt id="{key}">{name}</dt><dd>{text}</dd>' for key, (name, text) in _entries(about)
    )
    return f'<h2 id="meaning">What the figures mean</h2><dl>{entries}</dl>{_further()}'


def _entries(about: About | None) -> list[tuple[str, tuple[str, str]]]:
    entries = dict(_FIGURES)
    if about is not None and about.held_out is not None:
        name = f"<code>{escape(about.held_out)}</code>"
        entries["held_out"] = (
            "held-out reward",
            f"The mean of {name}, a reward that is measured and never trained, in its own unit. If "
            "it falls while the trained reward rises, the gain may be of the number only and not "
            "of the images: reward hacking.",
        )
    return list(entries.items())


_FIGURES = {
    "reward_mean": (
        "mean reward",
        "The mean of the trained reward over the evaluation's images, in the reward's own unit. "
        "Between the reference's and the exact tilt's it is also given as a share of the way.",
    ),
    "diversity": (
        "diversity within a prompt",
        "The mean distance between two images of one prompt, in pooled pixels (8 by 8, RGB). It is "
        "compared with the reference's: the exact tilt usually has a little less, a collapsed "
        "model much less.",
    ),
    "distance_to_reference": (
        "distance to the reference",
        "Fréchet distance between the aligned model's images and the reference's, per prompt, in "
        "32 principal components of the pooled pixels; 0 for the same distribution. The exact "
        "tilt's own distance is what beta asks for; much more is prior lost. It needs twice as "
        "many images of each prompt as components, and is a dash where there are fewer.",
    ),
    "distance_to_tilt": (
        "distance to the exact tilt",
        "Energy distance to the reference's images weighted by exp(beta · r); 0 at the tilt. It is "
        "an unbiased estimate, so it may be a little below 0. The tilt is left out where the "
        f"weights leave fewer than {MIN_EFFECTIVE_SAMPLE_SIZE} effective images of a prompt.",
    ),
    "kl": (
        "divergence of the paths",
        "The KL divergence of the aligned model's sampling paths from the reference's, in nats, "
        "summed over the steps. 0 is the reference. It never lies below the divergence of the "
        "images themselves, and it is the first to show a model that leaves its prior.",
    ),
    "loss": (
        "loss",
        "What training makes small, in the method's own unit. It compares updates of one run, not "
        "methods: each method's page says what its terms are.",
    ),
    "standard_error": (
        "±",
        "One standard error: of the same measurement with other noise two in three would lie "
        "within it.",
    ),
}


def _further() -> str:
    """Where the documentation says more: by link if the package names its address, else by path."""
    base = documentation()
    if base is None:
        named = ", ".join(f"{what}: <code>docs/{page}</code>" for what, page in PAGES.items())
    else:
        named = ", ".join(
            f'<a href="{escape(base)}/{page.removesuffix(".md")}.html">{what}</a>'
            for what, page in PAGES.items()
        )
    return f'<p class="note">More in the documentation: {named}.</p>'


def documentation() -> str | None:
    """The address of the documentation that the installed package names."""
    try:
        urls = metadata("nablaflow").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Documentation", "").rstrip("/") or None
