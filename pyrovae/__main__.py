"""`python -m pyrovae`."""

from pyrovae._start import main

if __name__ == "__main__":
    main()
