"""What of a judge's address is shown and stored."""

from __future__ import annotations

import pytest

from nablaflow.addresses import credentials, is_masked, masked, masked_url

URLS = {
    "http://judge.org/score": "http://judge.org/score",
    "https://me:word@judge.org:80/score": "https://***@judge.org:80/score",
    "https://judge.org/score?key=word": "https://judge.org/score?***",
    "https://me@judge.org?a=word#word": "https://***@judge.org?***",
    "https://judge.org/a#word": "https://judge.org/a#***",
    "https://me:wo@rd@judge.org/": "https://***@judge.org/",
    "/elsewhere?key=word": "/elsewhere?***",
}


@pytest.mark.parametrize("url", URLS)
def test_user_password_and_query_are_left_out(url: str):
    assert masked_url(url) == URLS[url]
    assert is_masked(URLS[url]) == (URLS[url] != url)


def test_in_a_spec_at_any_depth():
    url = "https://me:word@judge.org/"
    spec = {"name": "minimum", "of": [{"name": "remote", "url": url}, "warmth"]}
    assert "word" not in repr(masked(spec))
    assert masked("warmth + 0.5*symmetry") == "warmth + 0.5*symmetry"


def test_user_and_password_are_sent_apart():
    assert credentials("http://me:word@judge.org/s") == ("http://judge.org/s", "me:word")
    assert credentials("http://judge.org/s@t") == ("http://judge.org/s@t", None)
