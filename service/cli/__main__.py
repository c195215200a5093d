"""`python -m service.cli`: the same as `nightsweep`."""

from service.cli import main

main()
