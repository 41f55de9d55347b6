"""The public names are pinned; importing them is cheap and loads no framework and no cloud client."""

import statistics
import subprocess
import sys
import time

import pytest
from stores import run_python

import cas
import cas.experimental

HEAVY = {
    "torch", "tensorflow", "keras", "numpy", "obstore", "fsspec", "botocore", "boto3", "awscrt", "safetensors",
    "picklescan", "requests", "urllib3", "tqdm", "tabulate", "tenacity", "filelock", "sklearn", "reflink_copy",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    found = run_python(f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})")
    return set(found.split())


def test_public_names() -> None:
    assert sorted(cas.__all__) == [
        "CasError", "Checkpoint", "Determined", "ExperimentReference", "Settings", "TrialReference", "__version__",
        "add", "mirror", "pin", "prune", "recover", "remove", "trust", "unpin",
    ]  # fmt: skip
    for name in cas.__all__:
        assert getattr(cas, name) is not None
    assert dir(cas) == sorted(cas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cas.nothing  # noqa: B018 - the access is the test


def test_the_documented_import_path() -> None:
    from cas.experimental import Checkpoint, Determined

    assert Checkpoint is cas.Checkpoint and Determined is cas.Determined


@pytest.mark.parametrize(
    "code", ["import cas", "from cas import Determined, Checkpoint, add, CasError, Settings", "import cas.experimental"]
)
def test_importing_loads_nothing_heavy(code: str) -> None:  # issue 2, 7
    assert loaded_by(code) & HEAVY == set()


def test_opening_a_store_loads_nothing_heavy() -> None:
    code = "import tempfile, pathlib, cas.index.store as s; s.Store(pathlib.Path(tempfile.mkdtemp()) / 'h').put(b'x')"
    assert loaded_by(code) & HEAVY == set()


def test_a_pull_imports_what_it_needs_and_not_the_house() -> None:
    """Each module costs each process that pulls a millisecond or two: as many as a small checkpoint takes."""
    needless = ("actions", "cli", "pull.alone", "pull.job", "pull.unstored", "removing", "index.prune", "load.policy")
    needless += ("load.layouts", "load.links", "registry.master", "registry.catalog", "transfer.together")
    needless += ("transfer.azure", "transfer.gcs", "transfer.web", "transfer.anyfs", "transfer.archive")
    code = "import sys, cas.checkpoint, cas.transfer.s3; print(*sys.modules)"
    assert {f"cas.{name}" for name in needless} & set(run_python(code).split()) == set()


def milliseconds(code: str) -> float:
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


@pytest.mark.slow
def test_importing_costs_little() -> None:
    """The budget is 60 ms over an empty interpreter (DESIGN §9); tripled here, for a machine that is busy."""
    assert milliseconds("import cas") - milliseconds("pass") < 180


def test_the_package_says_that_it_has_types() -> None:
    from importlib.resources import files

    assert files("cas").joinpath("py.typed").is_file()
