"""A command's imports: garbage is not searched for meanwhile, and is afterwards as before."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nablaflow.commands.shared import importing


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    on = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if on else gc.disable)()


def test_no_search_for_garbage_inside():
    gc.enable()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_failed_import_leaves_the_collector_on():
    gc.enable()
    with pytest.raises(ImportError), importing():
        raise ImportError("no such module")
    assert gc.isenabled()


def test_who_has_no_collector_gets_none():
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_what_was_imported_is_not_searched_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module = tmp_path / "long_lived.py"
    module.write_text("held = [[] for _ in range(100)]")
    monkeypatch.syspath_prepend(tmp_path)
    with importing():
        held = importlib.import_module("long_lived").held
    assert not any(part is held for part in gc.get_objects())


def test_without_an_import_nothing_is_kept_from_the_search():
    held = [[] for _ in range(100)]
    before = gc.get_freeze_count()
    with importing():
        pass
    assert gc.get_freeze_count() == before
    assert any(part is held for part in gc.get_objects())
