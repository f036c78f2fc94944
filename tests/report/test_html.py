"""The HTML report: well formed, self-contained, safe, complete."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nablaflow.report import meaning
from nablaflow.report.html import write_report
from nablaflow.report.loading import Saved
from nablaflow.report.meaning import About
from nablaflow.report.table import rows

VOID = {"meta", "img", "source", "br", "link", "input"}
EVIL = '<script>alert("x")</script>'
RECORDS = [{"update": i, "reward_mean": i / 10, "loss": 1 / (i + 1)} for i in range(5)]


LORA = Saved(
    "runs/warm/lora",
    as_lora=True,
    pipeline="StableDiffusionPipeline",
    model="some/model",
    call={"prompt": "a circle", "guidance_scale": 2.0},
)


class Page(HTMLParser):
    """Collects tags and text, and fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def write(tmp_path: Path, summary: dict[str, Any]):
    def write(**changes: Any) -> str:
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        arguments = {
            "title": "Warm & bright",
            "config_text": "beta: 20\nnote: '<b>'\n",
            "summary": summary,
            "before": images,
            "after": 1.0 - images,
            "prompts": ["a circle", "a circle", "a star", EVIL],
            "records": RECORDS,
            "saved": LORA,
        }
        return write_report(tmp_path / "report.html", **(arguments | changes)).read_text("utf-8")

    return write


def test_it_is_well_formed_and_shows_every_part(write, summary):
    page = Page(write())
    for row in rows(summary):
        assert row.label in page.text
        assert all(cell in page.text for cell in row.cells)
    assert "closes 75% of the way" in page.text
    assert "1,200 updates · 12 min 34 s · 3.0 GB" in page.text
    assert "Warm & bright" in page.text
    assert "note: '<b>'" in page.text
    assert len(page.all("img")) == 4 + 4 + 2  # before, after, two curves
    assert len(page.all("source")) == 2  # the curves once more for dark screens


def test_it_asks_the_network_for_nothing(write):
    text = write()
    assert not re.search(r"https?://", text)
    assert not re.search(r"url\(|@import", text)
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})


def test_what_the_user_gave_is_text_and_never_markup(write):
    page = Page(
        write(title=EVIL, config_text=EVIL, saved=replace(LORA, folder=f"runs/{EVIL}", model=EVIL))
    )
    assert not page.all("script")
    assert page.text.count(EVIL) == 7  # title and code twice, prompt, path, configuration
    quoted = 'a "quoted" onload=x prompt'
    page = Page(write(prompts=[quoted] * 4))
    assert all("onload" not in attributes for attributes in page.all("img"))


def test_pictures_stand_in_the_order_of_prompt_and_seed(write):
    pictures = [a for a in Page(write()).all("img") if "seed" in (a["alt"] or "")]
    assert [a["alt"] for a in pictures][:4] == [
        "reference model, seed 0: a circle",
        "reference model, seed 1: a circle",
        "aligned model, seed 0: a circle",
        "aligned model, seed 1: a circle",
    ]
    before, after = (
        Image.open(io.BytesIO(base64.b64decode((pictures[place]["src"] or "").split(",")[1])))
        for place in (0, 2)
    )
    assert before.size == (16, 16)
    total = torch.tensor([before.getpixel((3, 5)), after.getpixel((3, 5))]).sum(0)
    assert ((total - 255).abs() <= 1).all()  # after is the negative


def test_tiny_pictures_keep_their_pixels_and_large_ones_are_made_smaller(write):
    assert all(a["class"] == "tiny" for a in Page(write()).all("img")[:8])
    large = torch.zeros(1, 3, 300, 600)
    page = Page(write(before=large, after=large, prompts=["one"]))
    picture = page.all("img")[0]
    assert "class" not in picture
    data = base64.b64decode((picture["src"] or "").split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (384, 192)


def test_the_lines_that_load_the_lora_are_python(write):
    code = Page(write(saved=replace(LORA, folder="runs/it's/lora"))).text
    lines = re.search(r"import torch.*images\[0\]", code, re.DOTALL)
    assert lines is not None
    compile(lines.group(), "snippet", "exec")
    assert lines.group().splitlines() == [
        "import torch",
        "from diffusers import StableDiffusionPipeline",
        "pipeline = StableDiffusionPipeline"
        ".from_pretrained('some/model', torch_dtype=torch.float32)",
        'pipeline.load_lora_weights("runs/it\'s/lora")',
        "image = pipeline(prompt='a circle', guidance_scale=2.0).images[0]",
    ]


@pytest.mark.parametrize("model", ["nano", "flow", "random:sd15-small"])
def test_the_lines_load_a_reference_that_is_no_folder(model):
    code = replace(LORA, model=model, pipeline=CLASSES.get(model, LORA.pipeline)).code()
    names: dict[str, Any] = {}
    exec("\n".join(code.splitlines()[:-2]), names)
    assert type(names["pipeline"]).__name__ in code or model.startswith("random:")


CLASSES = {"flow": "StableDiffusion3Pipeline"}


def test_a_reference_that_no_line_can_load_is_left_to_whoever_has_it(write):
    code = replace(LORA, model="python:StableDiffusionPipeline").code()
    assert code.splitlines()[0].startswith("pipeline = ...  # the StableDiffusionPipeline that")
    assert "from_single_file('…/a.safetensors', " in replace(LORA, model="…/a.safetensors").code()
    assert "from_pretrained('…/sd@2', torch_dtype" in replace(LORA, model="…/sd@2").code()
    elsewhere, here = (
        Page(write(saved=replace(LORA, model=model))).text for model in ("…/sd15", "models/sd15")
    )
    assert "… is the folder that it was in" in elsewhere
    assert "… is the folder" not in here
    assert "they need no nablaflow" in here


def test_a_whole_model_is_loaded_by_its_own_pipeline(write):
    saved = Saved("runs/x/model", False, "DDPMPipeline", "google/ddpm", call={})
    text = Page(write(saved=saved)).text
    assert "a whole DDPMPipeline, is in runs/x/model" in text
    assert "pipeline = DDPMPipeline.from_pretrained('runs/x/model', " in text
    assert "image = pipeline().images[0]" in text
    assert "lora" not in text.lower()


def test_images_without_a_prompt_have_a_heading_too(write):
    assert "without a prompt" in Page(write(prompts=[""] * 4)).text


def test_what_is_not_known_is_left_out(write, untrusted):
    page = Page(write(summary=untrusted, records=[], saved=None))
    assert "57 effective" in page.text
    assert "closes" not in page.text
    assert "diffusers" not in page.text
    assert len(page.all("img")) == 8
    assert 'class="way"' not in write(summary={})


def test_the_mark_stays_on_the_track_short_of_it_and_past_it(write, summary):
    for closing in (-0.2, 0.0, 0.75, 1.3):
        text = write(summary=summary | {"closing": closing})
        places = [float(place) for place in re.findall(r"left:([\d.-]+)%;--at", text)]
        reference, tilt, policy = places
        assert min(places) == 0.0
        assert max(places) == 100.0
        assert (policy - reference) / (tilt - reference) == pytest.approx(closing, abs=0.01)


def test_another_number_of_prompts_is_refused(write):
    with pytest.raises(ValueError, match="3 prompts"):
        write(prompts=["one", "two", "three"])


# --- it explains itself ---------------------------------------------------------------------------

ABOUT = About(
    "residual-nabla-db", f"warmth + {EVIL}", beta=4.0, aims_at_tilt=True, held_out="contrast"
)


def test_it_says_what_the_goal_is_and_what_every_figure_means(write, summary):
    page = Page(write(about=ABOUT))
    assert "p*(x | prompt) ∝ pref(x | prompt) · exp(beta · r(x, prompt))" in page.text
    assert "beta = 4" in page.text
    assert EVIL in page.text
    ids = {attributes.get("id") for _, attributes in page.tags} - {None}
    targets = {(a["href"] or "").removeprefix("#") for a in page.all("a")}
    assert {row.key for row in rows(summary)} <= targets <= ids
    assert "contrast, a reward that is measured and never trained" in page.text
    assert "held-out reward" not in Page(write(about=replace(ABOUT, held_out=None))).text
    assert "Its goal is the exact tilt" in page.text
    other = Page(write(about=replace(ABOUT, aims_at_tilt=False))).text
    assert "With these settings it has another goal, and may pass the exact tilt" in other
    assert "Its goal" not in other


def test_a_curve_without_its_picture_says_what_is_seen(write):
    (reward, loss) = [
        a["alt"] or "" for a in Page(write()).all("img") if "Curve" in (a["alt"] or "")
    ]
    assert "from 0 at update 0 to 0.4 at update 4, between 0 and 0.4" in reward
    assert "the reference's is 0.25; the exact tilt's is 0.75" in reward
    assert "sum of all terms from 1 at update 0 to 0.2 at update 4" in loss


def test_the_guard_is_shown_with_its_budgets(write, summary):
    guard = {
        "reference": {"diversity": 3.0, "reward": 0.1, "held_out": 0.5},
        "budgets": {"kl": 30.0, "diversity": 0.6, "held_out": None},
        "best_update": 4,
        "best_checkpoint": "checkpoints/best-000004",
        "action": "warn",
        "tripped": None,
        "last": {"kl": 3.0, "diversity": 0.9, "held_out": 0.5},
    }
    looks = [{"guard_kl": 3.0, "guard_diversity": 0.9, "guard_held_out": 0.5, "guard_reward": 0.2}]
    page = Page(write(summary=summary | {"guard": guard}, records=[{"update": 4} | looks[0]]))
    seen = " ".join(a["alt"] or "" for a in page.all("img"))
    assert "nats" in page.text
    assert "from 0 at update 0 to 3 at update 4" in seen
    assert "the budget is 30" in seen


def test_the_documentation_is_linked_where_the_package_names_its_address(write, monkeypatch):
    assert "docs/read_the_report.md" in Page(write()).text
    monkeypatch.setattr(meaning, "documentation", lambda: "https://example.org/nablaflow")
    links = {a["href"] for a in Page(write()).all("a")}
    assert "https://example.org/nablaflow/read_the_report.html" in links


def test_the_table_is_whole_on_a_phone(write):
    """Below 40rem a row is a grid of three columns under its name, and no column is hidden."""
    phone = re.search(r"@media \(max-width: 40rem\) \{(.*?)\n\}", write(), re.DOTALL)
    assert phone is not None
    assert "grid-template-columns: repeat(3, minmax(0, 1fr))" in phone.group(1)
    assert "small { display: none" not in phone.group(1)
