"""Every folder of modules has a face, so that import-linter sees what is in it."""

from pathlib import Path

import nablaflow

SOURCE = Path(nablaflow.__file__).parent


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert len(folders) > 15
    faceless = [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()]
    assert faceless == []
