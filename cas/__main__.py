"""`python -m cas`: the `cas` command, for environments whose scripts are not on the path."""

import sys

from cas.cli.main import cas

if __name__ == "__main__":
    sys.exit(cas())
