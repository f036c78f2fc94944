"""``python -m nablaflow``: the command line."""

from nablaflow.cli import main

if __name__ == "__main__":
    main()
