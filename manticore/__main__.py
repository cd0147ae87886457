"""``python -m manticore`` runs the command line."""

from manticore.cli import main

main()
