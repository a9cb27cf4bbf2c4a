"""`python -m hrpo`, for launchers that start modules: what `hrpo` is on the command line."""

from hrpo.cli.main import main

main()
