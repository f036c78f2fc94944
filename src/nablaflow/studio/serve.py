"""Serves the page on this machine until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from nablaflow.errors import UserError, installing
from nablaflow.studio.access import new_token
from nablaflow.studio.commands import Base
from nablaflow.studio.data import text_of, yaml_of
from nablaflow.studio.site import Site

HOST = "127.0.0.1"
FEATURES = "nano"


def check_installed() -> None:
    """Find out whether the packages of the extra are there.

    Raises:
        UserError: one is missing.
    """
    try:
        import jinja2  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"studio: needs {error.name}; {installing('studio')}") from error


def serve(site: Site, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; a command that the page started is stopped then, with a checkpoint.

    Args:
        port: 0 takes a free one.
        on_ready: told the address, token and all.

    Raises:
        UserError: the port is taken.
    """
    import uvicorn

    from nablaflow.studio.app import make_app

    token = new_token()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port: {port} cannot be used; 0 takes a free one") from error
        config = uvicorn.Config(make_app(site, token), log_level="warning", server_header=False)
        listening.listen(config.backlog)  # who opens the address at once finds it open
        on_ready(f"http://{HOST}:{listening.getsockname()[1]}/?token={token}")
        uvicorn.Server(config).run(sockets=[listening])


def make_site(root: Path, *, write: bool, features: str, recipe: Path | None) -> Site:
    """The page for a folder, checked before it is served.

    Raises:
        UserError: there is no such folder, recipe or features.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with runs or images in it")
    if features != FEATURES:  # the check loads torch, which takes seconds
        from nablaflow.features import check_name

        check_name(features)
    return Site(root.resolve(), write, features, _base(recipe))


def _base(recipe: Path | None) -> Base:
    if recipe is None:
        return Base()
    if not recipe.is_file():
        raise UserError(f"--recipe: there is no file {recipe}")
    model = yaml_of(text_of(recipe.resolve())).get("model", "nano")
    return Base(("train", str(recipe.resolve())), str(model))
