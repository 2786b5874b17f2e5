"""`python -m orchestration`, for `ray job submit`: the same command line without an installed console script."""

from orchestration.cli import main

if __name__ == "__main__":
    main()
