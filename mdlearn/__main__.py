"""`python -m mdlearn`."""

from mdlearn.cli import main

main()
