"""Starts the command line as `python -m orchestration`: a Ray job has no installed console script."""

from orchestration.cli import main

if __name__ == "__main__":
    main()
