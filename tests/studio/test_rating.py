"""Rating through the pages' own requests, then a fit of it and the tilt's preview."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from nablaflow.errors import UserError
from nablaflow.studio import jobs
from nablaflow.studio.folders import address, listing
from nablaflow.studio.pairs import PairRow
from nablaflow.studio.site import Site
from nablaflow.studio.table import JudgementTable
from nablaflow.studio.taste import Taste


def answer(client: TestClient, rate: str, question: dict, which: str, rater: str = "me") -> dict:
    given = {"rater": rater, "number": question["number"], "answer": which}
    return client.post(f"{rate}/answer", json=given).json()


def red(images: Path, shown: str) -> int:
    """Of an image by its address in the page."""
    with Image.open(listing(images).by_address[shown.split("?")[0]]) as picture:
        return picture.getpixel((0, 0))[0]


def rows_of(images: Path) -> list[PairRow]:
    return list(JudgementTable[PairRow](images / "pairs.csv", PairRow).rows())


def rate_by_red(client: TestClient, rate: str, images: Path, count: int) -> None:
    question = client.post(f"{rate}/ask", json={"rater": "me"}).json()
    while question["total"] < count:
        left, right = (red(images, shown) for shown in question["images"])
        question = answer(client, rate, question, "left" if left > right else "right")


def test_an_answer_is_on_the_disk_before_the_next_question(
    client: TestClient, rate: str, images: Path
):
    question = client.post(f"{rate}/ask", json={"rater": "me"}).json()
    following = answer(client, rate, question, "left")
    assert (following["done"], following["total"]) == (1, 1)
    (row,) = rows_of(images)
    left = question["images"][0].split("?")[0]
    assert images / row.preferred == listing(images).by_address[left]
    undone = client.post(f"{rate}/undo", json={"rater": "me"}).json()
    assert (undone["undone"], undone["total"]) == (True, 0)


def test_two_raters_at_once_lose_no_answer(client: TestClient, rate: str, images: Path):
    def judge(rater: str) -> None:
        question = client.post(f"{rate}/ask", json={"rater": rater}).json()
        for _ in range(20):
            question = answer(client, rate, question, "left", rater)

    both = [threading.Thread(target=judge, args=(rater,)) for rater in ("me", "you")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    raters = [row.rater for row in rows_of(images)]
    assert (raters.count("me"), raters.count("you")) == (20, 20)


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("ask", {}, 409),
        ("ask", {"rater": " "}, 409),
        ("ask", {"rater": "x" * 41}, 409),
        ("ask", {"rater": ["me"]}, 409),
        ("answer", {"rater": "me", "number": 1, "answer": "both"}, 400),
        ("answer", {"rater": "me", "number": "1", "answer": "left"}, 400),
        ("ask", ["me"], 400),
    ],
)
def test_requests_of_no_page(client: TestClient, rate: str, path: str, given: object, status: int):
    assert client.post(f"{rate}/{path}", json=given).status_code == status
    assert client.post(f"{rate}/{path}", content=b"{").status_code == 400


def test_a_full_disk_is_said_and_the_question_stays(
    client: TestClient, rate: str, images: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    question = client.post(f"{rate}/ask", json={"rater": "me"}).json()
    with monkeypatch.context() as patch:
        patch.setattr("nablaflow.studio.table.append_line", full)
        patch.setattr("nablaflow.studio.table.write_whole", full)
        given = {"rater": "me", "number": question["number"], "answer": "left"}
        refused = client.post(f"{rate}/answer", json=given)
    assert refused.status_code == 507
    assert "No space left on device" in refused.json()["error"]
    assert answer(client, rate, question, "left")["total"] == 1


def test_from_clicks_to_a_fitted_reward_and_its_tilt(
    client: TestClient, rate: str, images: Path, site: Site
):
    fit = f"/fit/{address(images)}"
    assert client.get(f"{fit}/preview?beta=1").status_code == 409
    rate_by_red(client, rate, images, 24)
    reward = images / "reward.safetensors"
    started = client.post(f"{fit}/start", json={}).json()["command"]
    assert started.startswith("nablaflow reward fit ")
    assert started.endswith(f"--features pixels --out {reward} --overwrite")
    assert site.jobs.last is not None
    assert site.jobs.last.wait() == 0, site.jobs.last.log
    assert client.get("/job").json()["ended"] == "done"
    page = client.get(fit).text
    assert "of held-out judgements told right" in page
    assert client.get(f"{fit}/calibration").content.startswith(b"\x89PNG")
    assert "What it likes best" in page
    seen = client.get(f"{fit}/preview?beta=2").json()
    assert "error" not in seen, seen
    assert seen["tilted"]["value"] > seen["reward"]["value"]
    assert all(seen[key]["se"] > 0 for key in ("tilted", "reward", "diversity"))
    assert 0 < seen["share"] < 1
    assert red(images, seen["images"][0][0]) >= 180
    assert "method.beta=2 " in seen["command"]
    assert f"reward={reward}" in seen["command"]
    for order, first in (("best", "0010-a-star.png"), ("worst", "0000-a-star.png")):
        ranked = client.get(f"/images/{address(images)}?sort={order}").text
        last = {"0010-a-star.png", "0000-a-star.png"} - {first}
        assert ranked.index(first) < ranked.index(last.pop())


@pytest.mark.parametrize("beta", ["0", "-1", "nan", "inf", "x", ""])
def test_betas_that_are_none(client: TestClient, images: Path, beta: str):
    refused = client.get(f"/fit/{address(images)}/preview?beta={beta}")
    assert (refused.status_code, "beta" in refused.json()["error"]) == (409, True)


def test_the_preview_is_the_exact_tilt_of_the_images():
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 4.0]])
    seen = torch.tensor([[0.0], [1.0], [3.0]])
    taste = Taste(["a", "b", "c"], scores, seen, torch.zeros(3, dtype=torch.long), {})
    found = taste.preview(0.5)
    weights = [math.exp(0.5 * r) for r in (0.0, 1.0, 3.0)]
    total = sum(weights)
    torch.testing.assert_close(
        found.weights, torch.tensor([3 * w / total for w in weights], dtype=torch.float64)
    )
    assert found.strength.tilted_reward_mean == pytest.approx(
        sum(w * r for w, r in zip(weights, (0.0, 1.0, 3.0), strict=True)) / total
    )
    pairs = {(0, 1): 1.0, (0, 2): 3.0, (1, 2): 2.0}
    mass = {pair: weights[pair[0]] * weights[pair[1]] for pair in pairs}
    tilted = sum(mass[p] * d for p, d in pairs.items()) / sum(mass.values())
    assert found.diversity.value == pytest.approx(tilted / 2.0)
    assert found.draw(100).count(2) == round(100 * weights[2] / total)
    assert taste.doubt([("b", "c"), ("a", "b")]) == pytest.approx([math.sqrt(2.0), 0.0], abs=1e-5)
    assert taste.spread(["c", "a"]) == pytest.approx([math.sqrt(2.0), 0.0], abs=1e-5)


def test_one_command_at_a_time_and_stopping(site: Site, monkeypatch: pytest.MonkeyPatch):
    # As in a shell's background. The loop looks at signals again and again, where `signal.pause`
    # misses the one that comes just before it.
    waits = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)"
    waits = f"import signal\n{waits}\nwhile True: pass"
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", waits])
    job = site.jobs.start(["train"], site.root)
    while "ready" not in job.log:
        assert job.status is None
    with pytest.raises(UserError, match="still running"):
        site.jobs.start(["train"], site.root)
    job.stop()
    assert job.wait() == -signal.SIGTERM
    assert job.ended
    assert site.jobs.running is None


def test_a_command_that_dies_is_said_to_have_died(
    client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
):
    dies = "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", dies])
    site.jobs.start(["train"], site.root).wait()
    job = client.get("/job").json()
    assert (job["running"], job["ended"]) == (False, "died: SIGKILL")
    assert "so far" in job["log"]
    assert job["commands"] == ["nablaflow train"]


def test_fresh_images_are_a_command(
    client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", "pass"])
    given = {"source": "", "prompts": " a star \n\n--n", "n": "4", "seed": "2"}
    command = client.post("/sample", json=given).json()["command"]
    out = site.root / "images" / "fresh-1"
    assert command == (
        f"nablaflow sample nano '--prompt=a star' --prompt=--n --n 4 --seed 2 --out {out}"
    )
    for wrong in ({"n": "0"}, {"n": "x"}, {"prompts": " "}, {"source": "gone"}):
        assert client.post("/sample", json={**given, **wrong}).status_code == 409


def test_stars_go_their_own_way(client: TestClient, images: Path):
    rate = f"/rate/{address(images)}/stars"
    question = client.post(f"{rate}/ask", json={"rater": "me"}).json()
    assert len(question["images"]) == 1
    for wrong in ("0", "6", "left"):
        given = {"rater": "me", "number": question["number"], "answer": wrong}
        assert client.post(f"{rate}/answer", json=given).status_code == 400
    assert answer(client, rate, question, "4")["total"] == 1
    assert (images / "ratings.csv").read_text().splitlines()[1].split(",")[1] == "4"


def test_of_two_kinds_of_judgements_one_is_named(client: TestClient, rate: str, images: Path):
    rate_by_red(client, rate, images, 3)
    test_stars_go_their_own_way(client, images)
    page = client.get(f"/fit/{address(images)}").text
    assert "3 pairs, 1 ratings" in page
    assert "--judgements pairs" in page
