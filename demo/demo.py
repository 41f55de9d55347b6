"""`make demo`: the main job on embedded defaults, with no server and no account.

Trains a small model on real data, adds its checkpoints to a store, finds the best, downloads and loads it in
processes that know nothing of the training script, and says what the store did. Everything lies in demo/run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUN = HERE / "run"
HOME = RUN / "home"
MIB = 1 << 20


def main() -> None:
    """Do it all, and stop with exit code 1 if a loaded model is not as good as the recorded one."""
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    os.environ["CAS_HOME"] = str(HOME)
    for name in ("DET_MASTER", "DET_MASTER_ADDR", "CAS_MASTER", "CAS_OFFLINE"):
        os.environ.pop(name, None)
    os.chdir(RUN)

    title("1. Train: one experiment, three trials, five checkpoints each; trial 3 on a frozen backbone")
    shutil.copytree(HERE / "digits", RUN / "training")
    run(sys.executable, "training/train.py")

    title("2. Find the best")
    best = find()

    title("3. Move the training script away; download, load and evaluate in fresh processes")
    (RUN / "training").rename(RUN / "moved-away")
    evaluate(best)

    title("4. What the store did")
    account(best)


def find() -> Any:
    """Ask for checkpoints in each of the documented ways; return the best of the experiment."""
    from cas.experimental import Determined

    experiment = Determined().get_experiment(1)
    best = experiment.top_checkpoint()
    show("top_checkpoint()", best)
    show('top_checkpoint(sort_by="loss", smaller_is_better=True)', experiment.top_checkpoint("loss", True))
    for place, checkpoint in enumerate(experiment.top_n_checkpoints(5), 1):
        show(f"top_n_checkpoints(5), number {place}", checkpoint)
    trial = Determined().get_trial(3)
    show(
        'get_trial(3).select_checkpoint(best=True, sort_by="loss", …)',
        trial.select_checkpoint(best=True, sort_by="loss", smaller_is_better=True),
    )
    show("get_trial(3).select_checkpoint(best=True)", trial.select_checkpoint(best=True))
    latest = trial.select_checkpoint(latest=True)
    show("get_trial(3).select_checkpoint(latest=True)", latest)
    first = Determined().get_trial(2).list_checkpoints()[0]
    show(
        f"get_trial(2).select_checkpoint(uuid={first.uuid[:8]}…)",
        Determined().get_trial(2).select_checkpoint(uuid=first.uuid),
    )
    return best


def evaluate(best: Any) -> None:
    """Load in three ways; each must reach the accuracy that was recorded when the checkpoint was added."""
    recorded = best.validation["metrics"]["validation_metrics"]["accuracy"]
    print(f"  recorded when it was added:  accuracy {recorded:.4f}")
    compare("load()", recorded, "best")

    path = run("det", "trial", "download", str(best.trial_id), "--best", "-q", quiet=True).strip()
    print(f"  $ det trial download {best.trial_id} --best -q    ->  {path}")
    compare(f'load_from_path("{path}")', recorded, "path", path)

    print("  $ det trial download 1 --best")
    print(indent(run("det", "trial", "download", "1", "--best", quiet=True)))


def compare(how: str, recorded: float, *arguments: str) -> None:
    """Evaluate in a fresh process and compare."""
    found = json.loads(run(sys.executable, str(HERE / "evaluate.py"), *arguments, quiet=True))
    print(f"  {how}: a {found['type']} with accuracy {found['accuracy']:.4f}, loaded in {found['seconds']:.2f} s")
    if abs(found["accuracy"] - recorded) > 1e-6:
        sys.exit(f"{how} gave accuracy {found['accuracy']}, but {recorded} was recorded")


def account(best: Any) -> None:
    """Say what was added against what is stored, and how long things take."""
    added = sum(path.stat().st_size for path in (RUN / "moved-away" / "checkpoints").rglob("*") if path.is_file())
    stored = sum(path.stat().st_size for path in (HOME / "blobs").rglob("*") if path.is_file())
    print(f"  added:   {added / MIB:8.1f} MiB in 15 checkpoints")
    print(f"  stored:  {stored / MIB:8.1f} MiB ({stored / added:.0%}): every distinct file once")
    print("           (weights change with each epoch; the code and the frozen backbone of trial 3 do not)")
    size = sum(best.resources.values()) / MIB
    shutil.rmtree("checkpoints")
    print(f"  download of {size:.1f} MiB from the store:        {timed(best.download) * 1e3:6.1f} ms")
    print(f"  the same again (complete, nothing to do):    {timed(best.download) * 1e3:6.1f} ms")
    best.load()
    print(f"  load() again in a process that has loaded:   {timed(best.load) * 1e3:6.1f} ms")
    print(f"  $ cas check --deep\n{indent(run('cas', 'check', '--deep', quiet=True))}")
    print(f"\n  The store lies in {HOME}; try `CAS_HOME={HOME} {command('cas')} ls`")


def timed(function: Any) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def show(what: str, checkpoint: Any) -> None:
    """Print one line about a checkpoint."""
    metrics = checkpoint.validation["metrics"]["validation_metrics"]
    where = f"trial {checkpoint.trial_id}, batch {checkpoint.batch_number}"
    print(f"  {what:62} {checkpoint.uuid[:8]}…  {where:19} accuracy {metrics['accuracy']:.4f}")


def command(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def run(program: str, *arguments: str, quiet: bool = False) -> str:
    """Run a command of this environment; return what it prints, or let it print."""
    path = program if "/" in program else command(program)
    pipe = subprocess.PIPE if quiet else None
    found = subprocess.run([path, *arguments], text=True, stdout=pipe, stderr=pipe, check=False)
    if found.returncode:
        sys.exit(f"{Path(path).name} {' '.join(arguments)} ended with {found.returncode}\n{found.stderr or ''}")
    return found.stdout or ""


def indent(text: str) -> str:
    """Indent the lines of a text."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


if __name__ == "__main__":
    main()
