"""No click is lost when the server is killed: what was acknowledged is on the disk."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from nablaflow.studio.access import HEADER
from nablaflow.studio.folders import address
from nablaflow.studio.pairs import PairRow
from nablaflow.studio.table import JudgementTable


def client(port: int, token: str):
    """Posts JSON as the page does."""
    host = f"127.0.0.1:{port}"
    headers = {
        "Host": host,
        "Origin": f"http://{host}",
        "Cookie": f"nablaflow={token}",
        HEADER: token,
    }

    def post(path: str, content: dict) -> dict:
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", path, json.dumps(content), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())

    return post


def test_what_was_acknowledged_survives_a_kill(images: Path):
    command = [sys.executable, "-m", "nablaflow", "studio", str(images.parent), "--write"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert server.stdout is not None
    where, token = server.stdout.readline().strip().split("/?token=")
    post = client(int(where.rpartition(":")[2]), token)
    place = f"/rate/{address(images)}/pairs"
    acknowledged: dict[str, int] = {}

    def judge(rater: str) -> None:
        question = post(f"{place}/ask", {"rater": rater})
        try:
            while True:
                given = {"rater": rater, "number": question["number"], "answer": "left"}
                question = post(f"{place}/answer", given)
                acknowledged[rater] = question["done"]
                if question["done"] == 30:
                    server.kill()  # in the midst of the others' answers
        except (OSError, http.client.HTTPException):
            return

    raters = [threading.Thread(target=judge, args=(name,)) for name in ("ann", "ben", "cid")]
    for rater in raters:
        rater.start()
    for rater in raters:
        rater.join()
    server.wait()
    kept = [row.rater for row in JudgementTable[PairRow](images / "pairs.csv", PairRow).rows()]
    assert max(acknowledged.values()) == 30
    for name, count in acknowledged.items():
        assert count <= kept.count(name) <= count + 1, name
