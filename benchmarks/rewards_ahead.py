"""A rollout with a slow judge: its images scored while others are sampled, and afterwards.

    python benchmarks/rewards_ahead.py

has the demo's model sample 32 images in parts of 8 for a `remote` reward that takes half a second a
call, prints a table of both ways in turns and writes runs/benchmark-rewards-ahead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.runs import setup
from nablaflow.training import scoring
from nablaflow.training.batches import Batches


class Judge(HTTPServer):
    """Gives every image the same score, after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds = seconds


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        judge: Any = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(judge.seconds)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"scores": [0.5] * len(request["images"])}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Without a line for each request, which is written meanwhile."""


def batches_of(url: str, at_once: int) -> Batches:
    """Of the demo, with a judge as its reward and a method that needs no gradient of it."""
    own = [
        f"reward={{name: remote, url: '{url}'}}",
        "method={name: ddpo, beta: 10.0}",
        f"training.rollout_batch={at_once}",
        *("training.trackers=[]", "evaluation.bank=0", "guard=null"),
    ]
    config = parse_config(apply_overrides(demo_settings(), own))
    return setup.prepare(config, config.output_dir).trainer.batches


def seconds_of(batches: Batches, number: int, *, ahead: bool) -> float:
    """By the clock, of one rollout."""
    goes_ahead = scoring.goes_ahead
    scoring.goes_ahead = goes_ahead if ahead else lambda *_: False
    try:
        began = time.perf_counter()
        batches.rollouts(number)
        return time.perf_counter() - began
    finally:
        scoring.goes_ahead = goes_ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a call")
    parser.add_argument("--at-once", type=int, default=8, help="trajectories of a part")
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-rewards-ahead.json"))
    given = parser.parse_args()
    os.environ["no_proxy"] = "*"
    judge = Judge(given.seconds)
    threading.Thread(target=judge.serve_forever, daemon=True).start()
    batches = batches_of(f"http://127.0.0.1:{judge.server_port}/", given.at_once)
    seconds_of(batches, 0, ahead=True)  # the first is slower
    found: dict[str, list[float]] = {"afterwards": [], "meanwhile": []}
    for number in range(1, given.rollouts + 1):
        for way, times in found.items():
            times.append(seconds_of(batches, number, ahead=way == "meanwhile"))
    print("| images are scored | seconds of a rollout | least | most |\n|---|---|---|---|")
    for way, times in found.items():
        print(f"| {way} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
