"""What every command has: its options, how it imports, and how a mistake ends it."""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from nablaflow.commands.late import load_late
from nablaflow.errors import ExportError, TrainingStopped, UserError, printable
from nablaflow.places import at_home

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, nothing else")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of a mistake")]
TrustRun = Annotated[
    bool,
    typer.Option(
        "--trust-run", help="use the code, hosts, variables and files that a run's config names"
    ),
]


KeyValues = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value …]", help="settings to change")
]


Moved = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[model=… model_lora=…]",
        help="where a run's model, and the LoRA in its reference, are now",
    ),
]


def home(path: Path | None) -> Path | None:
    """A path as the user meant it: of ``--out=~/a`` a shell leaves the ``~``."""
    return None if path is None else at_home(path)


def console(*, stderr: bool = False) -> Console:
    """Where tables go: what is in brackets or between colons is the user's, and no markup.

    Where nobody reads them any more, that is the error of a pipe, as `print` has it.
    """
    from rich.console import Console

    class Table(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program here
            raise

    return Table(stderr=stderr, markup=False, emoji=False)


def listed(option: str, given: Sequence[str] | None) -> list[str]:
    """The names of an option that may come again and may hold several with commas.

    Raises:
        UserError: one that was given names nothing, as by a variable of the shell that is empty.
    """
    found = [[name.strip() for name in text.split(",") if name.strip()] for text in given or ()]
    if not all(found):
        raise UserError(f"{option}: is empty; give a name, or leave it out")
    return [name for names in found for name in names]


@contextmanager
def importing() -> Iterator[None]:
    """Around a command's imports: no search for garbage while modules are made, nor in them later.

    What the libraries make lives as long as the process. Half a million objects are looked through
    again and again while they are imported, and once more by each later search that is thorough.
    And diffusers' schedulers import scipy.stats for sigmas that hardly one of them has.
    """
    load_late("scipy.stats")
    collects, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()


def guarded(work: Callable[[], None], debug: bool) -> None:
    """A mistake becomes one line and status 2; what only the program can be blamed for, a trace."""
    from nablaflow.runs.stopping import Interrupted, stopped_by_signals

    try:
        with stopped_by_signals():
            _without_exit(work)
            sys.stdout.flush()
    except (UserError, TrainingStopped, ExportError, Interrupted) as error:
        status = 2 if isinstance(error, UserError) else 130 if isinstance(error, Interrupted) else 1
        _end(error, str(error), status, debug)
    except KeyboardInterrupt as error:
        _end(error, "stopped", 130, debug)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains of it at its end
        _end(error, "nobody reads standard output any more", 1, debug)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _end(
            error,
            f"{place}{error.strerror}; use another file or folder, or mend this one",
            2,
            debug,
        )


def _without_exit(work: Callable[[], None]) -> None:
    """Code of the user's that ends the program is no success, whatever it says."""
    try:
        work()
    except SystemExit as error:
        raise RuntimeError(f"code that was called ended the program ({error!r})") from error


_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT),
    errno.ESTALE,  # of a server that has another file by now
}
"""What a disk or a path can do to a command, whatever it was doing."""


def _end(error: BaseException, text: str, status: int, debug: bool) -> NoReturn:
    if debug and not isinstance(error, KeyboardInterrupt):  # which Typer has an end of its own for
        raise error
    if debug:
        traceback.print_exception(error)
    from nablaflow.addresses import masked_text

    # At once, since several processes of a launch may end at the same moment.
    print(f"nablaflow: {printable(masked_text(text))}\n", end="", file=sys.stderr)
    raise typer.Exit(status) from None
