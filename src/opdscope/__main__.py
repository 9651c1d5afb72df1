"""`python -m opdscope` is the command `opdscope`."""

from opdscope.cli import main

if __name__ == "__main__":
    main()
