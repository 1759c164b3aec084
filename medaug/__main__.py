"""`python -m medaug` is the console script `medaug`."""

from medaug.cli import main

main()
