"""The commands `nablaflow` and `python -m nablaflow`; Ctrl-C while they load is one line too."""

import sys


def main() -> None:
    """Entry point of both."""
    try:
        from nablaflow.cli import main as begin
    except KeyboardInterrupt:  # the parser of the command line takes half a second to load
        print("nablaflow: stopped", file=sys.stderr)
        sys.exit(130)
    begin()


if __name__ == "__main__":
    main()
