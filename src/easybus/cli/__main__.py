"""`python -m easybus.cli`: what `easybus` runs, and what workers are started as."""

from . import main

main()
