"""`doctor`, and where settings come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
from cli import SCRIPTS, Shell, stocked_shell

from cas.config import Settings


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def found(shell: Shell, *words: str, code: int = 0) -> dict:
    ended = shell.run(*words, "doctor", "--json")
    assert (ended.code, ended.err) == (code, "")
    return json.loads(ended.out)


def setting(shell: Shell, name: str, *words: str, code: int = 0) -> tuple:
    (one,) = [one for one in found(shell, *words, code=code)["settings"] if one["name"] == name]
    return one["value"], one["source"]


def test_every_setting_is_there_with_its_meaning(shell):
    text = shell.run("doctor").ok.out

    for one in fields(Settings):
        assert f"\n{one.name} " in text
        assert one.metadata["doc"] in text


def test_each_setting_says_where_it_comes_from(shell):
    shell.variables |= {"DET_MASTER_ADDR": "addr:1", "CAS_CONCURRENCY": "3"}
    config = shell.folder / "user" / "config" / "cas" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("concurrency = 9\ntimeout = 5\n")

    assert setting(shell, "home") == (str(shell.home), "CAS_HOME")
    assert setting(shell, "home", "--home", "/x/y") == ("/x/y", "argument")
    assert setting(shell, "concurrency") == ("3", "CAS_CONCURRENCY")
    assert setting(shell, "timeout") == ("5.0", f"timeout in {config}")
    assert f"config.toml: {config}\n" in shell.run("doctor").out
    assert setting(shell, "verify") == ("default", "default")
    assert setting(shell, "master") == ("addr:1", "DET_MASTER_ADDR")
    shell.variables["DET_MASTER"] = "http://m"
    assert setting(shell, "master") == ("http://m", "DET_MASTER")
    shell.variables["CAS_MASTER"] = "http://c"
    assert setting(shell, "master") == ("http://c", "CAS_MASTER")
    assert setting(shell, "master", "-m", "http://a") == ("http://a", "argument")
    assert setting(shell, "offline", "--offline") == ("True", "argument")


def test_a_password_in_the_address_of_a_master_is_not_shown(shell):
    assert setting(shell, "master", "-m", "https://me:secret@m:1/x") == ("https://m:1/x", "argument")


def test_wrong_settings_are_said_with_their_remedy(shell):
    shell.variables |= {"CAS_LINK": "glue", "CAS_TIMEOUT": "soon"}

    ended = shell.run("doctor")

    assert (ended.code, ended.err) == (1, "")
    assert "!! CAS_LINK: 'glue' must be one of auto, reflink" in ended.out
    assert "!! CAS_TIMEOUT: 'soon' " in ended.out


def test_a_broken_configuration_file_is_said(shell):
    config = shell.folder / "config.toml"
    config.write_text("colour = 3\n")
    shell.variables["CAS_CONFIG"] = str(config)

    ended = shell.run("doctor")

    assert ended.code == 1
    assert f"!! {config}: no setting is called 'colour'" in ended.out


def test_the_disk_of_the_home_is_probed_without_making_a_store(shell):
    home = found(shell)["home"]

    assert (home["path"], home["exists"], home["writable"]) == (str(shell.home), False, True)
    assert home["locks"] is True and home["hard_links"] is True
    assert home["free"] > 0
    assert not shell.home.exists()


def test_a_home_that_is_no_folder_is_said(shell):
    shell.home.write_text("")

    findings = found(shell, code=1)["findings"]

    assert {
        "message": f"the home {shell.home} is no folder",
        "remedy": "set CAS_HOME to one",
        "serious": True,
    } in findings


def test_the_det_on_the_path_is_ours_or_not(shell):
    shell.variables["PATH"] = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    assert found(shell)["det"] == {"path": str(SCRIPTS / "det"), "ours": True}

    other = shell.folder / "bin" / "det"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 5\n")
    other.chmod(0o755)
    shell.variables["PATH"] = f"{other.parent}{os.pathsep}{shell.variables['PATH']}"
    assert found(shell)["det"] == {"path": str(other), "ours": False}
    assert f"`det` is another program: {other}; remedy: `cas` takes the same words" in shell.run("doctor").ok.out


def test_another_module_cas_is_found(shell):
    other = shell.folder / "site"
    metadata = other / "python_cas-1.6.0.dist-info"
    metadata.mkdir(parents=True)
    (other / "cas.py").write_text("")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: python-cas\nVersion: 1.6.0\n")
    shell.variables["PYTHONPATH"] = f"{shell.environment['PYTHONPATH']}{os.pathsep}{other}"

    module = found(shell)["module"]

    assert (module["python_cas"], module["other_files"]) == ("1.6.0", [str(other / "cas.py")])
    assert "another module `cas` is here too (python-cas 1.6.0)" in shell.run("doctor").ok.out


def test_extras_are_listed_without_importing_them(shell):
    code = (
        "import sys; from cas.cli import main; main.run(['doctor', '--json'], 'cas')\n"
        "print([name for name in ('torch', 'tensorflow', 'obstore') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shell.environment, capture_output=True, text=True)

    assert done.stderr == "[]\n"
    extras = json.loads(done.stdout)["extras"]
    assert set(extras) == {"s3", "torch", "tensorflow"}
    assert set(extras["s3"]) == {"obstore", "botocore", "isal", "awscrt"}


# --- the home and what lies below it ----------------------------------------------------------------------------


def messages(shell: Shell, code: int = 0) -> dict[str, str]:
    return {one["message"]: one["remedy"] for one in found(shell, code=code)["findings"]}


def test_a_private_store_is_described(tmp_path):
    shell = stocked_shell(tmp_path)
    home = found(shell)["home"]
    assert (home["store"], home["group"], home["sealed"], home["lock_kind"]) == (True, None, False, "flock")
    assert (home["index"], home["views"]) == (str(shell.home), str(shell.home / "views"))
    assert (home["blobs"], home["proven"]) == (3, 1.0)
    text = shell.run("doctor").ok.out
    assert "private" in text and "100% of 3 blobs need not be read after a reboot" in text
    assert not list(shell.home.glob("index-*.new"))


def test_a_groups_store_and_wrong_modes_are_described(tmp_path):
    shell = stocked_shell(tmp_path)
    shell.variables["CAS_SHARED"] = "group"
    assert messages(shell)["CAS_SHARED=group, but the store was made private"] == "`cas share --group NAME`"
    shell.prepare("share")
    home = found(shell)["home"]
    assert home["group"] is not None and not home["index"].startswith(str(shell.home))
    for mode, words in ((0o2770, "replace each other's folders"), (0o770, "not the group's"), (0o777, "everybody")):
        shell.home.chmod(mode)
        assert any(words in message for message in messages(shell, code=1))


def test_a_sealed_store_says_what_to_set(tmp_path):
    shell = stocked_shell(tmp_path)
    shell.prepare("seal")
    ((message, remedy),) = [one for one in messages(shell).items() if "sealed" in one[0]]
    assert "nothing can be added" in message and f"CAS_READ_ONLY_STORES={shell.home}" in remedy
    assert "cas seal --undo" in remedy
    assert "yes: nothing changes it" in shell.run("doctor").ok.out


def test_layers_are_described_each(tmp_path):
    shell = stocked_shell(tmp_path)
    shell.prepare("seal")
    shell.home.rename(tmp_path / "below")
    layers = [tmp_path / "below", tmp_path / "nothing", shell.home]
    shell.variables["CAS_READ_ONLY_STORES"] = os.pathsep.join(map(str, layers))
    shell.prepare("ls")
    told = messages(shell)
    assert told[f"the layer {tmp_path / 'nothing'} is not used: there is no store"].startswith("correct")
    assert told[f"{shell.home} is the home itself, and no layer"] == "take it out of read_only_stores"
    text = shell.run("doctor").ok.out
    assert f"layer {tmp_path / 'below'}" in text and "sealed, 100% of 3 blobs" in text
    assert os.pathsep.join(map(str, layers)) in text


def test_a_network_file_system_and_what_is_said_of_it_are_named(tmp_path):
    shell = stocked_shell(tmp_path)
    shell.variables["CAS_NETWORK"] = "yes"
    home = found(shell)["home"]
    assert home["on_network"] and not home["index"].startswith(str(shell.home))
    assert "yes (setting: yes); locks by lease" in shell.run("doctor").ok.out
    assert not any("network" in message for message in messages(shell))
