"""A judge behind HTTP: a server on a thread, of this process, that answers as each test says."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import load, probe, remote, require_gradient
from tests.support.judge import Answer, Server, judging, mean_red, pixels

IMAGES = torch.rand(3, 3, 6, 5, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]


@pytest.fixture
def server() -> Iterator[Server]:
    with judging() as found:
        yield found


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses between attempts, which no test waits for."""
    made: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", made.append)
    monkeypatch.setenv("no_proxy", "*")
    return made


def judge(server: Server, **settings: Any):
    return load({"name": "remote", "url": server.url, **settings})


def test_images_and_prompts_arrive_in_batches_and_scores_come_back(server):
    server.answer = mean_red
    found = judge(server, batch=2)(IMAGES, PROMPTS)
    assert [request["prompts"] for request in server.requests] == [["a", "b"], ["c"]]
    sent = pixels(server.requests[0]["images"][1])
    assert (sent == (IMAGES[1] * 255).round().byte().permute(1, 2, 0).numpy()).all()
    torch.testing.assert_close(found, IMAGES[:, 0].mean((1, 2)), atol=0.5 / 255, rtol=0)


def test_it_has_no_gradient_and_methods_that_need_one_refuse_it(server):
    server.answer = mean_red
    found = probe(judge(server), height=6, width=5, device="cpu", prompts=PROMPTS)
    assert not found.differentiable
    with pytest.raises(UserError, match=r"reward 'remote' has no usable gradient.*: ddpo"):
        require_gradient("remote", found, ["ddpo"])


def test_a_busy_judge_is_asked_again_after_ever_longer_pauses(server, pauses, capsys):
    def busy_twice(request: dict[str, Any]) -> Answer:
        return (503, b"loading") if len(server.requests) < 3 else mean_red(request)

    server.answer = busy_twice
    judge(server)(IMAGES, PROMPTS)
    assert pauses == [1.0, 2.0]
    asked = r"the judge at http.*: status 503, loading; asked again in 1 s\n.*in 2 s\n"
    assert re.fullmatch(asked, capsys.readouterr().err)


def test_by_default_a_judge_may_be_down_for_a_minute(server, pauses):
    server.answer = lambda request: (503, b"loading")
    with pytest.raises(UserError, match="attempts: 7"):
        judge(server)(IMAGES, PROMPTS)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    pauses.clear()
    with pytest.raises(UserError, match="attempts: 9"):
        judge(server, retries=8)(IMAGES, PROMPTS)
    assert pauses[5:] == [32.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("asked", "waited"), [(b"7", 7.0), (b"0", 1.0), (b"9999", 60.0), (b"Wed, 21 Oct 2026", 1.0)]
)
def test_a_judge_may_say_when_to_ask_again(server, pauses, asked, waited):
    busy = b"HTTP/1.1 429 Busy\r\nRetry-After: " + asked + b"\r\nContent-Length: 0\r\n\r\n"
    server.answer = lambda request: busy if len(server.requests) < 2 else mean_red(request)
    judge(server)(IMAGES, PROMPTS)
    assert pauses == [waited]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b'{"scores": [1, 2]}'), "answers 2 scores for 3 images; it must give one each"),
        ((200, b'{"scores": [1, NaN, 2]}'), "answers the score nan; it must be a finite float32"),
        (
            (200, b'{"scores": [1, 1e39, 2]}'),
            r"answers the score 1e\+39; it must be a finite float32",
        ),
        ((200, b'{"scores": [1, "good", 2]}'), "answers the score 'good'; it must be a number"),
        ((200, b'{"scores": [1, true, 2]}'), "answers the score True; it must be a number"),
        ((200, b'{"score": 1}'), 'answers no list of "scores"'),
        ((200, b"<html>\nhello"), r"answers no JSON \(<html>\); it must answer"),
        (
            (200, b'{"scores": [1, 1' + b"0" * 400 + b", 2]}"),
            r"answers the score 10{76}\.\.\.; it must be a finite",
        ),
        ((200, b"[" * 100_000), r"answers no JSON \(\[{77}\.\.\.\); it must answer"),
        ((400, b"no such\nmodel"), r"refuses \(status 400, no such\); mend the judge"),
        ((503, b"loading"), r"cannot be used \(status 503, loading; attempts: 3\); start it"),
    ],
)
def test_what_is_wrong_with_an_answer_is_one_line(server, answer, said):
    server.answer = lambda request: answer
    with pytest.raises(UserError, match=f"^reward: the judge at {server.url} {said}") as error:
        judge(server, retries=2)(IMAGES, PROMPTS)
    assert "\n" not in str(error.value)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
FAULTS = {
    "cut": (HEAD + b'{"scores":', r"IncompleteRead\(10 bytes read, 90 more expected\)"),
    "cut in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
        "IncompleteRead",
    ),
    "cut and busy": (HEAD.replace(b"200 OK", b"503 Busy") + b"x", "IncompleteRead"),
    "no HTTP": (b"220 mail.example ESMTP\r\n", r"220 mail\.example ESMTP"),
    "nothing": (b"", "Remote end closed connection without response"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_answer_is_asked_for_again(server, pauses, fault):
    answer, said = FAULTS[fault]
    server.answer = lambda request: answer
    with pytest.raises(UserError, match=rf"cannot be used \({said}.*; attempts: 2\)") as error:
        judge(server, retries=1)(IMAGES, PROMPTS)
    assert "\n" not in str(error.value)
    server.answer = lambda request: answer if len(server.requests) < 4 else mean_red(request)
    judge(server)(IMAGES, PROMPTS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_token_stays(server, monkeypatch, status):
    monkeypatch.setenv("JUDGE", "secret")
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {other.url}\r\n".encode()
        server.answer = lambda request: head + b"Content-Length: 0\r\n\r\n"
        with pytest.raises(UserError, match=rf"redirects \(status {status}\) to {other.url}; no "):
            judge(server, token_variable="JUDGE")(IMAGES, PROMPTS)
        other.shutdown()
        thread.join()
    assert len(server.requests) == 1
    assert not other.gets
    assert not other.requests


def test_a_judge_that_is_down(server, pauses):
    down = Server()
    down.server_close()
    with pytest.raises(UserError, match=r"cannot be used \(.*refused; attempts: 2\); start it"):
        judge(down, retries=1)(IMAGES, PROMPTS)
    assert pauses == [1.0]


def test_a_judge_that_is_slow(server):
    asked_enough = threading.Event()

    def never(request: dict[str, Any]) -> Answer:
        asked_enough.wait(60)
        return mean_red(request)

    server.answer = never
    with pytest.raises(UserError, match=r"no answer in 0\.05 s; attempts: 1"):
        judge(server, retries=0, timeout=0.05)(IMAGES, PROMPTS)
    asked_enough.set()


def test_a_judge_that_drips_is_slow(server):
    clock = threading.Event()

    def drip(request: dict[str, Any]) -> Iterator[bytes]:
        yield HEAD
        for _ in range(100):
            yield b" "
            clock.wait(0.02)

    server.answer = drip
    with pytest.raises(UserError, match=r"no answer in 0\.2 s; attempts: 1"):
        judge(server, retries=0, timeout=0.2)(IMAGES, PROMPTS)
    clock.set()


def test_a_token_comes_from_the_environment(server, monkeypatch):
    server.answer = mean_red
    with pytest.raises(UserError, match=r"reward\.token_variable: JUDGE is not set"):
        judge(server, token_variable="JUDGE")
    monkeypatch.setenv("JUDGE", "secret")
    judge(server, token_variable="JUDGE")(IMAGES, PROMPTS)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("JUDGE", "two\nlines")
    with pytest.raises(UserError, match=r"reward\.token_variable: JUDGE must be one line"):
        judge(server, token_variable="JUDGE")


def test_an_address_is_needed_and_must_be_one():
    with pytest.raises(UserError, match=r"reward\.url: missing for remote \(where the judge"):
        load("remote")
    with pytest.raises(UserError, match=r"reward\.url: 'ftp://x' must begin with http"):
        load({"name": "remote", "url": "ftp://x"})
    for url in ("http://localhost:abc/", "http://a/b c", "http://", "http://[::1", "http://a/é"):
        with pytest.raises(UserError, match=r"reward\.url: 'http.* is no address; give http://"):
            load({"name": "remote", "url": url})
