"""What holds for every embedded model: its files."""

import pytest
from safetensors import safe_open

from nablaflow import nano
from nablaflow.errors import UserError


@pytest.mark.parametrize(("name", "most"), [("nano", 25e6), ("flow", 15e6)])
def test_it_ships_small_in_half_precision_and_without_pickles(name: str, most: float):
    files = [path for path in nano.path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= most
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    for path in nano.path(name).rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "I64"}, path


def test_a_model_that_is_not_embedded_is_refused():
    with pytest.raises(UserError, match=r"no embedded model 'flwo'; did you mean flow\?"):
        nano.path("flwo")
