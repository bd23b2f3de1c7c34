"""`python -m pyrovae`."""

from pyrovae.app.cli import main

if __name__ == "__main__":
    main()
