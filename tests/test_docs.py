"""The documentation: links resolve, pages can be found, tables say what the code is."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from nablaflow import estimators, methods, models
from nablaflow.methods import METHODS, UNTRAINED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *ROOT.glob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _prose(path: Path) -> str:
    """A text without its blocks of code, whose brackets are no links."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def _anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", _prose(path), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(path):
    for link in LINK.findall(_prose(path)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{link}: there is no {found}"
        if anchor and found.suffix == ".md":
            assert anchor in _anchors(found), f"{link}: no such heading"


def test_what_recipes_and_messages_name_exists():
    """Paths such as docs/guide.md in recipes, in the code and in the Makefile."""
    texts = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]
    named = [
        (path, name)
        for path in texts
        for name in re.findall(r"\b(?:docs|recipes)/[\w/]+\.\w+", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 10
    assert [(str(path), name) for path, name in named if not (ROOT / name).is_file()] == []


def test_every_page_is_in_the_navigation():
    listed = _pages_of(_site()["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_the_site_fetches_nothing():
    site = _site()
    assert site["theme"]["font"] is False
    assert site["plugins"] == ["search"]
    assert not {"extra_javascript", "extra_css"} & set(site)


def _site() -> dict:
    """mkdocs.yml; what names a Python function in it is left out."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def _pages_of(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry if isinstance(entry, list) else entry.values()
    return [page for part in parts for page in _pages_of(part)]


def test_the_table_of_methods_is_true():
    """All methods are in it, and what it says they need is what they need."""
    text = (DOCS / "choose_method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(\S+\)[^|]*\| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    table = {name: (gradient, images) for name, gradient, images in rows}
    kinds = {**METHODS, **UNTRAINED}
    assert set(table) == set(kinds)
    for name, kind in kinds.items():
        if name == "value-matching":  # its estimator decides
            continue
        gradient, images = table[name]
        assert gradient.startswith("needed") == kind.needs_reward_gradient, name
        if getattr(kind, "needs_group", False) is True:
            assert not images.startswith("1 "), name


def _tables_of_code(path: Path) -> Iterator[dict[str, str]]:
    """Rows of the tables that have a column "code", by their columns."""
    columns: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif "code" in columns:
            yield dict(zip(columns, cells, strict=True))


def _names_in_the_code() -> tuple[set[str], set[str], dict[str, type]]:
    """Of the package: all that is defined, all keys and texts, and the classes of methods."""
    defined, texts, classes = set[str](), set[str](), dict[str, type]()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    for room in (methods, estimators, models):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            found = vars(importlib.import_module(module.name))
            classes |= {name: value for name, value in found.items() if isinstance(value, type)}
    return defined, texts, classes


def test_what_the_pages_of_methods_call_code_is_code():
    """Functions and attributes in a column "code" exist, and what is "logged as" is logged."""
    defined, texts, classes = _names_in_the_code()
    missing, looked = list[str](), 0
    for page in sorted((DOCS / "methods").glob("*.md")):
        for row in _tables_of_code(page):
            for name in re.findall(r"`(\w+(?:\.\w+)*)`", row["code"]):
                owner, _, last = name.rpartition(".")
                there = hasattr(classes.get(owner), last) if owner else last in defined
                missing += [] if there or name in texts else [f"{page.name}: {name}"]
                looked += 1
            for text in re.findall(r"`(\w+)…?`", row.get("logged as", "")):
                there = {text, text.removeprefix("loss_"), text.removesuffix("_k")} & texts
                missing += [] if there else [f"{page.name}: {text}"]
    assert looked > 60
    assert missing == []


def test_every_estimator_has_its_name_where_value_matching_is_told():
    union = get_args(get_args(estimators.AnyEstimator)[0])
    names = {kind.model_fields["name"].default for kind in union}
    text = (DOCS / "methods" / "nabla_td.md").read_text(encoding="utf-8")
    assert len(names) > 5
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_order_of_rooms_is_that_which_the_linter_keeps():
    kept = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1]
    lines = [re.findall(r"\((\w+)\)", line) for line in re.findall(r'"(.*)"', kept.split("]")[0])]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^    (__main__ >.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert [re.split(r",\s*", rooms.strip()) for rooms in told.split(">")] == lines


def test_an_extra_is_installed_from_the_checkout_since_no_index_has_the_package():
    told = [*DOCS.rglob("*.md"), *(ROOT / "src").rglob("*.py"), ROOT / "README.md"]
    wrong = [path.name for path in told if "nablaflow[" in path.read_text(encoding="utf-8")]
    assert wrong == []
