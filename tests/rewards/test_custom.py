"""Loading the user's own reward from a file."""

import os
import py_compile
from pathlib import Path

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards.custom import is_custom, load_function

SOURCE = """
from __future__ import annotations

import dataclasses
from pathlib import Path

LIMIT = 3


@dataclasses.dataclass
class Scorer:
    scale: float = 2.0

    def __call__(self, images, prompts):
        return self.scale * images.mean((1, 2, 3))


scorer = Scorer()


def average(images, prompts):
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_function_and_instance_are_loaded(file):
    images = torch.full((2, 3, 2, 2), 0.25)
    assert load_function(f"{file}:average")(images, ["", ""]).tolist() == [0.25, 0.25]
    assert load_function(f"{file}:scorer")(images, ["", ""]).tolist() == [0.5, 0.5]


def test_a_relative_path_starts_at_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load_function("mine.py:average") is load_function(f"{file}:average")


def test_a_changed_file_is_run_anew(file):
    os.utime(file, ns=(0, 0))
    before = load_function(f"{file}:average")
    file.write_text(SOURCE.replace("images.mean", "-images.mean"))
    os.utime(file, ns=(0, 0))  # a copy has its source's time, and a clock may be put back
    after = load_function(f"{file}:average")
    images = torch.ones(1, 3, 2, 2)
    assert (before(images, [""]).item(), after(images, [""]).item()) == (1.0, -1.0)


def test_files_of_the_same_name_are_kept_apart(tmp_path):
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(images, prompts):\n    return {number}\n")
    functions = [load_function(f"{tmp_path}/{folder}/r.py:f") for folder in "ab"]
    assert [function(torch.zeros(1), []) for function in functions] == [1, 2]
    assert functions[0].__module__ != functions[1].__module__


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("averag", r"mine.py has no averag; did you mean average\?"),
        ("zzz", "mine.py has no zzz; choose one of Scorer, average, scorer"),
        ("LIMIT", "is of type int, which cannot be called: name a function of"),
        ("Scorer", "is a class: make an instance in the file"),
        ("", "names no function: write path/to/file.py:function"),
        ("not a name", "names no function: write path/to/file.py:function"),
    ],
)
def test_a_bad_function_is_explained(file, attribute, message):
    with pytest.raises(UserError, match=message) as caught:
        load_function(f"{file}:{attribute}")
    assert "\n" not in str(caught.value)


def test_a_path_without_a_function_is_explained(file):
    assert is_custom(str(file))
    with pytest.raises(UserError, match=r"names no function: write path/to/file.py:function"):
        load_function(str(file))


def test_a_missing_file_and_another_kind_of_file_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*absent.py; check the path"):
        load_function(f"{tmp_path}/absent.py:f")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt is not a Python file; its name must end .py"):
        load_function(f"{tmp_path}/notes.txt:f")


def test_a_file_that_defines_nothing_has_no_suggestion(tmp_path):
    (tmp_path / "empty.py").write_text("from math import sqrt\n")
    with pytest.raises(UserError, match=r"empty.py has no f; define it there"):
        load_function(f"{tmp_path}/empty.py:f")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import no_such_package_at_all\n", "ModuleNotFoundError: No module named"),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_that_fails_to_run_is_explained(tmp_path, source, error):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError, match=f"broken.py fails when imported \\({error}") as caught:
        load_function(f"{path}:f")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("beside", ["mine_too.py", "mine_too/__init__.py"])
def test_a_module_beside_it_is_not_searched_and_that_is_said(tmp_path: Path, beside: str):
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).touch()
    (tmp_path / "score.py").write_text("from mine_too.parts import f\n")
    with pytest.raises(UserError, match="mine_too is beside it") as caught:
        load_function(f"{tmp_path / 'score.py'}:f")
    assert str(caught.value).endswith(f"set PYTHONPATH={tmp_path}")


def test_the_source_runs_and_not_a_compiled_copy_beside_it(tmp_path: Path):
    """One of an earlier text, or put there by somebody else, has the source's time and size."""
    file = tmp_path / "mine.py"
    text = "def score(images, prompts):\n    return images.mean((1, 2, 3)) * {}\n"
    file.write_text(text.format(7))
    py_compile.compile(str(file), doraise=True)
    stamp = file.stat().st_mtime_ns
    file.write_text(text.format(2))
    os.utime(file, ns=(stamp, stamp))
    copies = sorted(tmp_path.rglob("*.pyc"))
    assert len(copies) == 1
    before = copies[0].read_bytes()
    score = load_function(f"{file}:score")
    assert score(torch.ones(1, 3, 4, 4), ["a"]).item() == pytest.approx(2.0)
    assert copies[0].read_bytes() == before, "nor is one written"
