"""``python -m ginnel``."""

from ginnel.cli import main

main()
