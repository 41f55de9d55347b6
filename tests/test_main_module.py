"""`python -m cas`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli import Shell

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["bogus"], 2), (["rm", "0" * 32, "--yes"], 3)])
def test_it_ends_with_the_exit_code_of_the_command(tmp_path, words, code):
    shell = Shell(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "cas", *words], env=shell.environment, cwd=tmp_path, capture_output=True
    )

    assert done.returncode == code
