"""``python -m armor``."""

from armor.cli import main

main()
