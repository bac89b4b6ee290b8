"""`python -m spantune`."""

from spantune.cli import main

main()
