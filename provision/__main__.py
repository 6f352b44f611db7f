"""`python -m provision` is the command."""

from provision.cli.main import main

if __name__ == "__main__":
    main()
