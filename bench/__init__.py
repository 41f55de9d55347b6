"""Benchmarks beside peers, against a real S3 server on the same machine: `python -m bench --help`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # its servers import each other by their own names
