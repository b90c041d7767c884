"""`python -m hierclip`: the command, for where torchrun starts it."""

from hierclip.cli import main

main()
