"""`python -m pyrovae`."""

from pyrovae._start import program

if __name__ == "__main__":
    program()
