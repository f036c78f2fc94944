"""``nablaflow`` as several processes of one launch, of which the libraries are imported once.

    python forked.py PROCESSES train RECIPE --json

imports what training needs and forks the processes, with the variables that torchrun gives them.
What a launcher does besides (restarts, what is refused) is not in it; torchrun's own tests are.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback


def place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of one machine."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    whole = {"LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(n) for name, n in (own | whole).items()}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(arguments: list[str]) -> int:
    """The command in this process; its exit status."""
    from nablaflow.cli import app

    try:
        app(arguments, standalone_mode=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(processes: int, arguments: list[str]) -> int:
    """The largest exit status of all processes."""
    import nablaflow.runs
    import nablaflow.training.loop  # noqa: F401

    port, started = free_port(), []
    for rank in range(processes):
        started.append(os.fork())
        if started[-1] == 0:
            os.environ.update(place(rank, processes, port))
            status = run(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255 for pid in started)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
