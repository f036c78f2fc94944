"""What holds for every embedded model: its files."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.storage.written import check_checksums


@pytest.mark.parametrize(("name", "most"), [("nano", 25e6), ("flow", 15e6)])
def test_it_ships_small_in_half_precision_and_without_pickles(name: str, most: float):
    files = [path for path in nano.path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= most
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    for path in nano.path(name).rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "I64"}, path


@pytest.mark.parametrize("name", ["nano", "flow"])
def test_a_flipped_bit_of_it_is_noticed(name: str, tmp_path: Path):
    copy = Path(shutil.copytree(nano.path(name), tmp_path / name))
    check_checksums(copy)
    for part in sorted(path.relative_to(copy) for path in copy.glob("*/*")):
        path = copy / part
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{part} is not what was written there"):
            check_checksums(copy)
        path.write_bytes(whole)


def test_a_model_that_is_not_embedded_is_refused():
    with pytest.raises(UserError, match=r"no embedded model 'flwo'; did you mean flow\?"):
        nano.path("flwo")
