"""Who is let in, and who may change something."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from nablaflow.studio.access import COOKIE, HEADER
from nablaflow.studio.app import make_app
from nablaflow.studio.site import Site
from tests.studio.conftest import TOKEN, URL

ASK = {"rater": "me"}


def fresh(site: Site, **headers: str) -> TestClient:
    return TestClient(make_app(site, TOKEN), base_url=URL, headers=headers, follow_redirects=False)


def test_the_token_of_the_address_becomes_a_cookie(site: Site):
    browser = fresh(site)
    assert browser.get("/").status_code == 403
    assert browser.get("/?token=another").status_code == 403
    entered = browser.get(f"/?token={TOKEN}")
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    said = entered.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert browser.get("/").status_code == 200


def test_another_name_that_leads_here_is_refused(site: Site):
    browser = fresh(site, host="evil.example:8000")
    assert browser.get(f"/?token={TOKEN}").status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example", HEADER: TOKEN},
        {"origin": URL},
        {"origin": URL, HEADER: "another"},
        {HEADER: TOKEN},
        {"origin": "null", HEADER: TOKEN},
    ],
)
def test_what_did_not_come_from_the_page_changes_nothing(
    site: Site, rate: str, headers: dict[str, str]
):
    browser = fresh(site, **headers)
    browser.cookies.set(COOKIE, TOKEN)
    assert browser.post(f"{rate}/ask", json=ASK).status_code == 403


def test_without_write_nothing_changes(site: Site, rate: str, client: TestClient):
    site.write = False
    reader = TestClient(make_app(site, TOKEN), base_url=URL, cookies=client.cookies)
    reader.headers.update({"origin": URL, HEADER: TOKEN})
    assert reader.get(rate).status_code == 200
    for path in (f"{rate}/ask", f"{rate}/answer", "/job/stop"):
        assert reader.post(path, json=ASK).status_code == 403
    assert client.post(f"{rate}/ask", json=ASK).status_code == 200


def test_no_page_loads_or_runs_what_is_not_its_own(client: TestClient, rate: str):
    for path in ("/", rate, "/static/studio.js", "/nothing"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "style=" not in answer.text
        assert "onclick" not in answer.text
