"""From clicks to an aligned model with nobody at the keys: a scripted rater with a known taste.

    python benchmarks/studio_demo.py [--folder runs/studio] [--pairs 200] [--updates 40]
        [--screenshots docs/images/studio] [--out result.json]

It writes images of the reference bank to a folder, starts `nablaflow studio`, opens it in headless
Chromium, and does what a person would: judges pairs of what the page shows, fits a reward, takes
the beta that the page proposes, aligns as the demo does (with fewer images to measure, and no
guard), samples a few fresh images, draws the gallery. The rater's taste is that of
`nablaflow.nano.taste`, with the odds of the
shipped pairs. Then the aligned model is held against the exact tilt *of that taste*: the reference
bank reweighted by exp(b u), u the true taste, and b such that as large a share of the bank counts
as under the fitted reward at the page's beta. The way to it is a share of the mean u.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from nablaflow.nano.preferences import CERTAINTY
from nablaflow.nano.taste import preference_rule

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESKTOP, PHONE = {"width": 1000, "height": 720}, {"width": 390, "height": 780}
PATIENCE, LONGEST = 120 * 1000, 3600 * 1000  # milliseconds: of a page, of a command
RECIPE, IMAGES = "recipe.yaml", 200
MEASURED = 128  # images of the run's own evaluation
BANK, SAMPLES = 2048, 384  # of the reference and of the aligned model, that taste is measured on
COLOURS = 256  # of a screenshot


@contextmanager
def served(folder: Path):
    """The address of a studio over a folder."""
    command = [sys.executable, "-m", "nablaflow", "studio", str(folder), "--write"]
    command += ["--recipe", str(folder / RECIPE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def prepare_folder(folder: Path) -> None:
    """The recipe, and images as the reference has them: of the bank that ships with the package."""
    from nablaflow import nano
    from nablaflow.config.defaults import PROMPTS, demo_settings
    from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
    from nablaflow.runs.sample import write_images
    from nablaflow.storage.cached import read_cached

    folder.mkdir(parents=True, exist_ok=True)
    settings = demo_settings()
    settings["evaluation"] |= {"n": MEASURED}
    recipe = {key: value for key, value in settings.items() if key not in ("reward", "guard")}
    (folder / RECIPE).write_text(yaml.safe_dump({**recipe, "reward": "warmth"}))
    bank = read_cached(nano.bank_path())
    assert bank is not None
    sampler = SamplerSettings(**settings["sampler"])
    model = load_model(
        load_pipeline(str(nano.path())), sampler, AdapterSettings(), torch.device("cpu")
    )
    with torch.no_grad():
        parts = bank["states"][:IMAGES].float().split(20)
        images = torch.cat([model.decode(part) for part in parts])
    prompts = [PROMPTS[place % len(PROMPTS)] for place in range(IMAGES)]
    write_images(images, prompts, folder / "images" / "reference")


class Rater:
    """Judges what the page shows, by Bradley-Terry odds of the true taste."""

    def __init__(self, page: Any, seed: int) -> None:
        self.page, self.draw = page, random.Random(seed)
        self._known: dict[str, float] = {}

    def taste(self, image: str) -> float:
        address = self.page.locator(image).evaluate("image => image.src")
        if address not in self._known:
            content = self.page.request.get(address).body()
            picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
            self._known[address] = float(preference_rule(pixels, [""]))
        return self._known[address]

    def judge(self, count: int) -> None:
        """One pair after the other, with the arrow keys; each is awaited."""
        done = self.page.locator("#progress")
        for number in range(count):
            self.page.wait_for_selector("#rating:not([aria-busy])")
            odds = CERTAINTY * (self.taste("#image-0") - self.taste("#image-1"))
            left = self.draw.random() < 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
            self.page.keyboard.press("ArrowLeft" if left else "ArrowRight")
            done.filter(has_text=f"{number + 1} in all").wait_for()


@dataclass
class Walk:
    """A walk through the pages of one studio.

    Attributes:
        shots: where pictures of the pages go; None: nowhere.
    """

    browser: Any
    address: str
    shots: Path | None

    def __post_init__(self) -> None:
        self.page = self.browser.new_page(viewport=DESKTOP)
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(self.address)
        self.base = self.address.split("/?")[0]
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str):
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began

    def shoot(self, name: str, page: Any = None) -> None:
        if self.shots is None:
            return
        page = page or self.page
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        few = picture.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE)
        self.shots.mkdir(parents=True, exist_ok=True)
        few.save(self.shots / f"{name}.png", optimize=True)

    def run_command(self, button: str) -> None:
        """Press a button that starts a command, and wait until that has ended well."""
        ended = "#job:not(.running)"  # the one before: it ends a moment after its files are there
        self.page.wait_for_selector(ended, state="attached", timeout=LONGEST)
        self.page.click(button)
        self.page.wait_for_selector("#job.running", state="attached")
        self.page.wait_for_selector("#job:not(.running)", timeout=LONGEST)
        state = self.page.inner_text("#job-state")
        if state != "done":
            raise RuntimeError(f"{state}: {self.page.text_content('#job-log')}")

    def sample(self, n: int) -> None:
        self.page.goto(self.base)
        self.page.click("details:has(#fresh) summary")
        self.page.fill("#prompts", "a star")
        self.page.fill("#n", str(n))
        self.shoot("fresh")
        with self.timed(f"{n} fresh images"):
            self.run_command("#fresh button")
        self.page.wait_for_selector("text=fresh-1")

    def judge(self, pairs: int, seed: int) -> None:
        self.page.click("text=rate pairs")
        rater = Rater(self.page, seed)
        with self.timed("clicks"):
            rater.judge(pairs)
        self.page.wait_for_selector("#rating:not([aria-busy])")
        self.shoot("pairs")
        with self.timed("another page"):
            self.page.click("text=give stars instead")
            self.page.wait_for_selector("#rating:not([aria-busy])")
        self.shoot("stars")

    def fit(self) -> dict[str, str]:
        self.page.click("header >> text=fit and align")
        with self.timed("fit"):
            self.run_command("#fit")
            self.page.wait_for_selector("#tilted img", timeout=LONGEST)
        self.page.locator("#beta").scroll_into_view_if_needed()
        figures = self.page.locator("ul.figures").first.inner_text().split("\n")
        self.shoot("fit")
        return dict(zip(figures[1::2], figures[::2], strict=True))

    def align(self, updates: int) -> float:
        """Start the alignment at the proposed beta, and watch it to its end; returns the beta."""
        beta = float(self.page.inner_text("#beta-value"))
        self.page.fill("#updates", str(updates))
        with self.timed("align"):
            self.page.click("#align")
            self.page.locator("#job.running code", has_text=" train ").wait_for()
            self.page.wait_for_selector("#job-leads[href^='/run/']", timeout=LONGEST)
            self.page.click("#job-leads")
            self.page.wait_for_selector("#live-curves img", timeout=LONGEST)
            self.shoot("training")
            self.page.wait_for_selector("#live .state.finished", timeout=LONGEST)
        return beta

    def look(self) -> None:
        with self.timed("gallery"):
            self.run_command("button[data-post$='/draw']")
            self.page.wait_for_selector(".cards img", timeout=LONGEST)
        self.page.locator("#gallery").scroll_into_view_if_needed()
        self.page.evaluate("document.getElementById('gallery').scrollIntoView()")
        self.shoot("gallery")
        run = self.page.url
        self.page.goto(f"{self.base}/compare")
        self.shoot("compare")
        self.page.goto(f"{self.base}/words")
        self.shoot("words")
        self.page.goto(self.base)
        self.shoot("index")
        self._elsewhere(run)

    def _elsewhere(self, run: str) -> None:
        """The same pages on a phone, and in the dark."""
        images = self.page.locator(".folders .name a").first.get_attribute("href").split("/")[-1]
        for name, path, given in (
            ("phone", f"{self.base}/rate/{images}/pairs", {"viewport": PHONE}),
            ("dark", run, {"viewport": DESKTOP, "color_scheme": "dark"}),
        ):
            page = self.browser.new_page(**given)
            page.goto(self.address)
            page.goto(path)
            self.shoot(name, page)
            page.close()


def walk(folder: Path, pairs: int, updates: int, shots: Path | None, seed: int) -> dict[str, Any]:
    """From nothing to an aligned model, through the pages."""
    from playwright.sync_api import sync_playwright

    prepare_folder(folder)
    with served(folder) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        steps = Walk(browser, address, shots)
        steps.judge(pairs, seed)
        told = steps.fit()
        beta = steps.align(updates)
        steps.look()
        steps.sample(4)
        browser.close()
    return {"pairs": pairs, "updates": updates, "beta": beta, "fit": told, "seconds": steps.seconds}


def scored(run: Path) -> tuple[Any, Any]:
    """Images of the reference bank and of the aligned model, by the fitted reward and by the taste.

    The fitted reward's scores are the samples' own, the taste's are those that are held out.
    """
    from nablaflow.comparison.gauge import ScoredSamples
    from nablaflow.evaluation.bank import reference_bank, sample_states
    from nablaflow.evaluation.measure import measure_states
    from nablaflow.evaluation.policy_state import put_policy
    from nablaflow.progress import show
    from nablaflow.runs.accelerator import fresh_accelerator
    from nablaflow.runs.saved_config import load_run_config
    from nablaflow.runs.setup import prepare
    from nablaflow.storage.checkpoint import load_policy
    from nablaflow.storage.manifest import list_checkpoints

    config, last = load_run_config(run, ["guard=null"]), list_checkpoints(run)[-1]
    batch, size = config.evaluation.batch, config.evaluation.bank
    with fresh_accelerator(), show() as progress:
        parts = prepare(config, run, checkpoint=last)
        model, prompts = parts.model, parts.evaluated
        reward, looks = parts.reward, {"taste": preference_rule}

        def score(states: torch.Tensor, what: str) -> Any:
            told = progress.start(what, len(states))
            found = measure_states(
                model, reward, states, prompts, batch=batch, on_progress=told, looks=looks
            )
            return ScoredSamples(found.samples, found.rows["taste"])

        told = progress.start("read the bank", size)
        states = reference_bank(
            model, parts.fingerprint, prompts, config.sampler, size, batch=batch, on_progress=told
        )
        bank = score(states[:BANK], "score the bank")
        put_policy(model.network, load_policy(last), last, config.model)
        told = progress.start("sample", SAMPLES)
        states = sample_states(
            model, prompts, SAMPLES, seed=7, batch=batch, purpose="taste", on_progress=told
        )
        return bank, score(states, "score the policy")


def against_the_taste(run: Path, beta: float) -> dict[str, float]:
    """How far the aligned model has come to the exact tilt of the true taste."""
    from nablaflow.metrics import ImportanceWeights, diversity, reward_mean
    from nablaflow.metrics.strength import Strength, beta_of_effective_share

    bank, policy = scored(run)
    index, taste, fitted = bank.samples.prompt_index, bank.held_out, bank.samples.rewards
    share = Strength.of_rewards(fitted, index, beta).effective_share
    own = beta_of_effective_share(taste, index, share)
    weights = ImportanceWeights.of_rewards(taste, index, own).weights
    of_fit = ImportanceWeights.of_rewards(fitted, index, beta).weights
    start, goal = reward_mean(taste, index), reward_mean(taste, index, weights)
    by_fit, found = (
        reward_mean(taste, index, of_fit),
        reward_mean(policy.held_out, policy.samples.prompt_index),
    )
    length = goal.value - start.value
    return {
        "share": share,
        "taste_of_reference": start.value,
        "taste_of_tilt": goal.value,
        "taste_of_fitted_tilt": by_fit.value,
        "taste_of_policy": found.value,
        "way": (found.value - start.value) / length,
        "way_se": math.hypot(found.se, goal.se) / length,
        "way_of_fitted_tilt": (by_fit.value - start.value) / length,
        "diversity_of_tilt": diversity(bank.samples.features, index, weights).value,
        "diversity_of_policy": diversity(
            policy.samples.features, policy.samples.prompt_index
        ).value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/studio"))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = walk(given.folder, given.pairs, given.updates, given.screenshots, given.seed)
    run = given.folder.resolve() / "aligned-1"
    result |= against_the_taste(run, result["beta"])
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
