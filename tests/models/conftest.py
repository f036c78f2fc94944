"""Folders of tiny models, written once for all tests of this room."""

from pathlib import Path

import pytest

from tests.support.pipelines import stable_diffusion, stable_diffusion_xl, unconditional


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``sd`` predicts epsilon, ``sd2`` v, ``sdxl`` is XL, ``ddpm`` unconditional; only read."""
    root = tmp_path_factory.mktemp("pipelines")
    stable_diffusion().save_pretrained(root / "sd")
    stable_diffusion("v_prediction").save_pretrained(root / "sd2")
    stable_diffusion_xl().save_pretrained(root / "sdxl")
    unconditional().save_pretrained(root / "ddpm")
    return {name: root / name for name in ("sd", "sd2", "sdxl", "ddpm")}
