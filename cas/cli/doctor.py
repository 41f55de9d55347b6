"""`doctor`: what is set and why, what this machine can do, and what stands in the way."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.homes import Finding, Homes
from cas.cli.parser import add_command, add_form
from cas.config import config_file, explain

if TYPE_CHECKING:
    from cas.config import Explained
    from cas.index.probe import Abilities

_EXTRAS = {
    "s3": ("obstore", "botocore", "isal", "awscrt"),
    "torch": ("torch", "numpy", "picklescan"),
    "tensorflow": ("tensorflow",),
}


def register(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "doctor",
        doctor,
        summary="print every setting and where it comes from, what this machine can do, and what stands in the way",
        what="examine this machine",
        usage="[OPTIONS]",
        example="$ doctor\nCAS_HOME=/data/cas $ doctor\n$ doctor --json",
    )
    add_form(parser)


def doctor(args: argparse.Namespace) -> int:
    """Print everything; exit code 1 if something serious was found."""
    from cas.index.probe import probe

    settings = explain(home=args.home, master=args.master, offline=True if args.offline else None)
    home = Path(str(next(one.value for one in settings if one.name == "home"))).expanduser()
    abilities = probe(home)
    command, module, extras = _find_det(), _find_module(), {name: _versions(name) for name in _EXTRAS}
    homes = Homes.look(home, settings)
    findings = [*_wrong_settings(settings), *homes.findings(abilities), *_about_det(command), *_about_module(module)]
    if args.json:
        main, layers = homes.to_json()
        output.say_json(
            versions=_own_versions(),
            settings=[{**asdict(one), "value": _shown(one)} for one in settings],
            config_file=str(config_file()),
            home={**main, "path": str(home), "exists": home.exists(), **asdict(abilities)},
            layers=layers,
            det=command,
            module=module,
            extras=extras,
            findings=[asdict(finding) for finding in findings],
        )
    else:
        _print_versions(extras)
        _print_settings(settings)
        _print_home(home, abilities, homes)
        _print_names(command, module)
        _print_findings(findings)
    return int(any(finding.serious for finding in findings))


# --- what is found -----------------------------------------------------------------------------------------------


def _own_versions() -> dict[str, str]:
    from cas import __version__

    return {"checkpoint-cas": __version__, "python": platform.python_version()}


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _versions(extra: str) -> dict[str, str | None]:
    """Return the packages of an extra with their versions; None of one that is not installed. Imports none."""
    from importlib.util import find_spec

    def version(name: str) -> str:
        return _version(name) or _version(f"{name}-cpu") or "installed"

    return {name: version(name) if find_spec(name) else None for name in _EXTRAS[extra]}


def _find_det() -> dict[str, Any]:
    """Say which `det` the shell would run, and whether it is ours."""
    path = shutil.which("det")
    return {"path": path, "ours": _is_ours(path) if path else None}


def _is_ours(script: str) -> bool:
    try:
        with open(script, "rb") as file:
            return b"cas.cli" in file.read(1 << 20)
    except OSError:
        return False


def _find_module() -> dict[str, Any]:
    """Say where `import cas` leads, and whether python-cas, which has the same import name, is installed too."""
    import cas

    beside = [str(found) for folder in sys.path if (found := Path(folder or os.curdir, "cas.py")).is_file()]
    return {"path": cas.__file__, "python_cas": _version("python-cas"), "other_files": beside}


# --- what it means -----------------------------------------------------------------------------------------------


def _wrong_settings(settings: tuple[Explained, ...]) -> list[Finding]:
    return [Finding(one.error, f"correct it: {one.doc}", serious=True) for one in settings if one.error]


def _about_det(command: dict[str, Any]) -> list[Finding]:
    if command["path"] is None:
        scripts = Path(sys.executable).parent
        remedy = f"add {scripts} to PATH" if (scripts / "det").exists() else "`cas` takes the same words"
        return [Finding("no `det` on PATH", remedy)]
    if not command["ours"]:
        remedy = "`cas` takes the same words: cas trial download …; or put this environment's scripts first on PATH"
        return [Finding(f"`det` is another program: {command['path']}", remedy)]
    return []


def _about_module(module: dict[str, Any]) -> list[Finding]:
    if module["python_cas"] is None and not module["other_files"]:
        return []
    where = f"python-cas {module['python_cas']}" if module["python_cas"] else ", ".join(module["other_files"])
    message = f"another module `cas` is here too ({where}); `import cas` gives {module['path']}"
    return [Finding(message, "keep one of them in an environment of its own (python -m venv)")]


# --- print -------------------------------------------------------------------------------------------------------


def _print_versions(extras: dict[str, dict[str, str | None]]) -> None:
    rows: list[tuple[object, ...]] = [*_own_versions().items(), ("platform", platform.platform())]
    for extra, packages in extras.items():
        absent = [name for name, version in packages.items() if version is None]
        have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        advice = f"; {', '.join(absent)} not installed: pip install 'checkpoint-cas[{extra}]'" if absent else ""
        rows.append((f"extra {extra}", (have + advice).removeprefix("; ")))
    output.say(output.table(("what", "version"), rows))


def _print_settings(settings: tuple[Explained, ...]) -> None:
    rows = [(one.name, _shown(one), one.source, one.doc) for one in settings]
    output.say("\n" + output.table(("setting", "value", "from", "meaning"), rows))
    path = config_file()
    output.say(f"config.toml: {path}{'' if path.exists() else ' (not there)'}")


def _shown(one: Explained) -> str | None:
    if one.value is None:
        return None
    text = os.pathsep.join(map(str, one.value)) if isinstance(one.value, tuple) else str(one.value)
    scheme, separator, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if separator else text  # with no password


def _print_home(home: Path, abilities: Abilities, homes: Homes) -> None:
    words = {True: "yes", False: "no", None: "not tried"}
    rows = [
        ("path", home if home.exists() else f"{home} (made when it is needed)"),
        ("free", f"{output.size(abilities.free)} of {output.size(abilities.total)}"),
        ("file system", abilities.file_system or "unknown"),
        ("writable", words[abilities.writable]),
        ("locks", words[abilities.locks]),
        ("hard links", words[abilities.hard_links]),
        ("reflinks", words[abilities.reflinks]),
        *homes.rows(),
    ]
    output.say("\n" + output.table(("home", ""), rows))


def _print_names(command: dict[str, Any], module: dict[str, Any]) -> None:
    whose = {True: "ours", False: "another program", None: "none on PATH"}[command["ours"]]
    rows = [
        ("det", f"{command['path']} ({whose})" if command["path"] else whose),
        ("import cas", f"{module['path']} (ours)"),
        ("python-cas", module["python_cas"] or "not installed"),
    ]
    output.say("\n" + output.table(("name", "leads to"), rows))


def _print_findings(findings: list[Finding]) -> None:
    output.say("\n" + ("what stands in the way:" if findings else "nothing stands in the way"))
    for finding in findings:
        mark = "!!" if finding.serious else "- "
        output.say(output.printable(f"  {mark} {finding.message}; remedy: {finding.remedy}"))
