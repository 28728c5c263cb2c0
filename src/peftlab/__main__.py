"""`python -m peftlab`: the same as the command `peftlab`."""

import sys

from peftlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
