"""``python -m archir``."""

from archir.cli.main import main

main()
