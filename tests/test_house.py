"""Every folder of modules has a face, so that import-linter sees what is in it."""

import re
from pathlib import Path

import nablaflow

SOURCE = Path(nablaflow.__file__).parent


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert len(folders) > 15
    faceless = [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()]
    assert faceless == []


def test_no_pipeline_is_named_above_the_models() -> None:
    """A family says everything that depends on its class; the embedded model is made as one."""
    rooms = (SOURCE / "models", SOURCE / "nano")
    above = [path for path in SOURCE.rglob("*.py") if not set(rooms) & set(path.parents)]
    named = re.compile(r"(StableDiffusion\w*|DDPM|Diffusion)Pipeline\b|\.unet\b|\.transformer\b")
    assert [path.name for path in above if named.search(path.read_text())] == []
