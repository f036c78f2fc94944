"""What is secret in a judge's address reaches the judge alone; a report knows no folder."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.faults.conftest import SHORT, one_line
from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]


class Judge(BaseHTTPRequestHandler):
    """Scores by an image's bytes; remembers what it was sent beside them."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, self.headers.get("Authorization")))
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [sum(base64.b64decode(image)) % 97 / 97 for image in request["images"]]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": scores}).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Judge) as found:
        found.seen = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_secrets_of_an_address(
    cli: Cli, recipe: Path, here: Path, server: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://me:sesame@127.0.0.1:{server.server_port}/score?key=opensaysme"
    judge = f"reward={{name: remote, url: '{url}'}}"
    short = [setting for setting in SHORT if not setting.startswith("method.")]
    result = cli("train", recipe, *short, "method=ddpo", "training.updates=1", judge)
    assert result.exit_code == 0, result.stderr
    basic = base64.b64encode(b"me:sesame").decode()
    assert set(server.seen) == {("/score?key=opensaysme", f"Basic {basic}")}
    everything = {**contents(here), "stderr": result.stderr.encode()}
    for secret in (b"sesame", b"opensaysme", basic.encode()):
        assert not [name for name, content in everything.items() if secret in content]
    one_line(cli("eval", "run"), "reward.url")
    again = cli("eval", "run", f"reward={{name: remote, url: '{url}'}}", "--json")
    assert again.exit_code == 0, again.stderr


ADDRESS = "https://me:sesame@judge.example/score?key=sesame"
MISTAKES = {
    "alone": f"reward={ADDRESS}",
    "in a sum": f"reward=warmth + {ADDRESS}",
    "as a key": f"reward={{'{ADDRESS}': 1}}",
    "as a weight": f"reward={{warmth: '{ADDRESS}'}}",
    "of a list": f"reward=['{ADDRESS}']",
    "of a misspelt key": f"reward={{name: remote, ulr: '{ADDRESS}'}}",
    "in a list": f"reward={{name: remote, url: ['{ADDRESS}']}}",
    "as a number": f"seed={ADDRESS}",
    "as a model": f"model={ADDRESS}",
    "as prompts": f"prompts={ADDRESS}",
    "of a device": f"reward={{name: pickscore, device: '{ADDRESS}'}}",
    "not a setting": ADDRESS.replace("=", ":"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_message_about_an_address_in_the_wrong_place(
    cli: Cli, recipe: Path, here: Path, mistake: str
):
    result = cli("train", recipe, *SHORT, MISTAKES[mistake])
    one_line(result)
    assert "sesame" not in result.output
    assert not (here / "run").exists()


def test_a_report_holds_no_absolute_path(cli: Cli, recipe: Path, here: Path):
    (here / "my prompts.txt").write_text("a circle\n")
    (here / "mine.py").write_text("def f(images, prompts): return -images[:, 2].mean((1, 2))\n")
    own = (f"reward={here}/mine.py:f", f"prompts={here}/my prompts.txt", f"output_dir={here}/run")
    result = cli("train", recipe, *SHORT, *own)
    assert result.exit_code == 0, result.stderr
    text = (here / "run" / "report.html").read_text()
    assert str(here.parent) not in text
    assert "…/my prompts.txt" in text
    assert "…/mine.py:f" in text


WRONG = {
    "eval": ["eval", ADDRESS],
    "sample": ["sample", ADDRESS],
    "export": ["export", ADDRESS, "--format", "kohya"],
    "gallery": ["gallery", ADDRESS],
    "compare": ["compare", ADDRESS],
    "reward fit": ["reward", "fit", ADDRESS],
    "a reward's weights": ["reward", "score", ".", "--reward", "warmth", "--weights", ADDRESS],
    "train": ["train", ADDRESS],
    "doctor": ["doctor", ADDRESS],
    "an option of a number": ["sample", "nano", "--n", ADDRESS],
    "an option of a few words": ["reward", "fit", ".", "--judgements", ADDRESS],
    "no command": [ADDRESS],
}


@pytest.mark.parametrize("place", WRONG)
def test_an_address_in_place_of_what_a_command_takes(cli: Cli, here: Path, place: str):
    (here / ADDRESS.rpartition("?")[0]).mkdir(parents=True)
    result = cli(*WRONG[place])
    assert result.exit_code == 2
    assert "sesame" not in result.output
