"""`python -m tracetool` is the same as the command `tracetool`."""

from tracetool.cli import main

if __name__ == "__main__":
    main()
