"""Runs the commands as users do: real processes, with a home and settings of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cas.cli import main

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent


@dataclass
class Shell:
    """A folder to work in, and an environment in which nothing of the developer's own is seen."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        user = self.folder / "user"
        isolated = {
            "HOME": str(user),
            "XDG_DATA_HOME": str(user / "data"),
            "XDG_CONFIG_HOME": str(user / "config"),
            "XDG_CACHE_HOME": str(user / "cache"),
            "CAS_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }
        return {**kept, **isolated, **self.variables}

    def start(self, *words: str, program: str = "cas", **options: object) -> subprocess.Popen[str]:
        """Start a command."""
        code = f"import sys; from cas.cli import main; sys.exit(main.run(sys.argv[1:], {program!r}))"
        command = [sys.executable, "-m", "cas.cli.main"] if program == "cas" else [sys.executable, "-c", code]
        defaults: dict[str, object] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
        }
        return subprocess.Popen(
            [*command, *words], cwd=self.folder, env=self.environment, text=True, **{**defaults, **options}
        )

    def run(self, *words: str, program: str = "cas", **options: object) -> Result:
        """Run a command to its end."""
        process = self.start(*words, program=program, **options)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out or "", err or "")

    def prepare(self, *words: str) -> None:
        """Run a command that a test needs before it begins: in a child made by fork, where all is imported."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.chdir(self.folder)
                os.environ.clear()
                os.environ.update(self.environment)
                code = main.run([*words], "cas")
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, words


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.rstrip("\n")

    @property
    def ok(self) -> Result:
        """This, if the command succeeded."""
        assert self.code == 0, self
        return self


UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]


def stocked_shell(folder: Path) -> Shell:
    """A shell with two checkpoints (the first two `UUIDS`) that share a file, of two trials."""
    shell = Shell(folder)
    for number, uuid in enumerate(UUIDS[:2], 1):
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "common").write_bytes(b"c" * 1000)
        (model / "own").write_bytes(b"%d" % number * 10)
        words = ["--experiment", "1", "--trial", str(number), "--steps", str(number * 100)]
        metric = ["--metric", f"loss={number}", "--searcher-metric", "loss", "--smaller-is-better", "yes"]
        shell.prepare("add", "model", "--uuid", uuid, *words, *metric)
    return shell


def blobs(shell: Shell) -> list[Path]:
    """The paths of all blobs in the shell's store."""
    return sorted((shell.home / "blobs").glob("??/*"))
