"""A run's folder for a configuration: whether it may be used, and made or kept for its run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs.saved_config import check_same
from nablaflow.runs.trust import paths_read
from nablaflow.storage.files import write_whole
from nablaflow.storage.lock import check_free, held, sign_launch
from nablaflow.storage.manifest import name_in
from nablaflow.storage.naming import keep_name
from nablaflow.storage.run_folder import (
    CONFIG,
    check_no_links,
    check_replaceable,
    forget_replaced,
    has_checkpoint,
    is_begun,
    place_fault,
    put_back,
    remove_partial,
    set_aside,
    undo_move,
)
from nablaflow.storage.scratch import remove_left


def check_run(config: Config, *, resume: bool, overwrite: bool) -> None:
    """Find out, before any work, whether the run's folder may be used; writes nothing.

    Raises:
        UserError: it holds another run already, or something else; there is nothing to resume;
            another process writes there.
    """
    run = config.output_dir
    fault = place_fault(run)
    if fault is not None:
        raise UserError(f"output_dir: {fault}; give another folder")
    if run.is_dir():
        check_free(run)
    _check_content(config, resume=resume, overwrite=overwrite)


def _check_content(config: Config, *, resume: bool, overwrite: bool) -> None:
    run = config.output_dir
    check_no_links(run)
    if resume:
        check_same(config)
    elif is_begun(run):
        if not overwrite:
            raise UserError(
                f"output_dir: {run} is not empty; use --resume, --overwrite or another folder"
            )
        check_replaceable(run)
        _check_apart(config)


def _check_apart(config: Config) -> None:
    """A run that is replaced is neither where the user stands nor around what is read."""
    run = config.output_dir.resolve()
    taken = {"the working directory": Path.cwd()}
    with suppress(RuntimeError):  # a user that a container was given may have none
        taken["the home folder"] = Path.home()
    taken |= {f"what the run reads ({path})": path for path in paths_read(config)}
    for what, place in taken.items():
        if place.resolve().is_relative_to(run):
            raise UserError(
                f"--overwrite: {config.output_dir} is or holds {what}; use another output_dir"
            )


@contextmanager
def open_run(
    config: Config, *, resume: bool = False, overwrite: bool = False, launch: str | None = None
) -> Iterator[Path]:
    """The run's folder, made anew or kept for resuming; nobody else writes there meanwhile.

    Args:
        launch: which one this is; once the run is begun, an elastic restart of it may go on.

    A run that is replaced waits until the new one has a checkpoint (`forget_replaced`); if it comes
    to none, the old one is put back.

    Raises:
        UserError: as `check_run`, which is asked again now that nothing changes any more; or the
            folder cannot be written.
    """
    run = config.output_dir.absolute()
    with ExitStack() as stack:
        with _the_users_disk(run):
            run.mkdir(parents=True, exist_ok=True)
            _check_content(config, resume=resume, overwrite=overwrite)  # before the marker
            stack.enter_context(held(run))
        try:
            with _the_users_disk(run):
                _begin(config, resume=resume, overwrite=overwrite)
                if launch is not None:
                    sign_launch(run, launch)
            yield run
        finally:
            if put_back(run):
                print(f"{run}: the run that was there is back in its place", file=sys.stderr)


@contextmanager
def _the_users_disk(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"output_dir: cannot write {run} ({error.strerror})") from error


def _begin(config: Config, *, resume: bool, overwrite: bool) -> None:
    run = config.output_dir
    check_no_links(run)
    undo_move(run)
    remove_partial(run)
    remove_left(run)
    if resume and not (run / CONFIG).exists():
        put_back(run)
    _check_content(config, resume=resume, overwrite=overwrite)
    if not resume and is_begun(run):
        set_aside(run)
    if has_checkpoint(run):
        forget_replaced(run)
    write_whole(run / CONFIG, dump_config(config))
    keep_name(run, name_in(run))
