"""`python -m clipmill`: the command line, where the script `clipmill` is not on the path."""

from serve.cli.entry import main

if __name__ == "__main__":
    main()
