"""The files whose pickles and programs are judged: those of torch, as torch itself reads them."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from pathlib import Path
from typing import IO, Any

from cas.errors import ContentError, UnsafeContentError
from cas.load.policy import REMEDY, Policy, refusal

MAGIC = 0x1950A86A20F9469CFC6C  # what files of torch before 1.6 begin with (torch.serialization)


def check_torch_file(source: Path | IO[bytes], policy: Policy, *, subject: str | None = None, **options: Any) -> None:
    """Judge every pickle that `torch.load` would run of a file, in today's format or in that from before 1.6.

    `source` is a file, or what is open of one.

    Raises:
        UnsafeContentError: one of them would call something that it must not.
        ContentError: it is no file of torch.
    """
    name = subject or str(source)
    with open(source, "rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            _check_zip(source, policy, name, options)
        else:
            _check_legacy(file, policy, name, options)


def check_torchscript(path: Path) -> None:
    """Judge the program in a file of TorchScript: it runs while it is loaded, and two operations write files.

    Raises:
        UnsafeContentError: it uses one of them, or is in a format whose programs cannot be told from other records.
    """
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if "model.json" in names:  # torch reads that, then, and the programs that it names, whatever they are called
        raise UnsafeContentError(f"{path}: it is TorchScript in the format before torch 1.4, which cannot be checked")
    for name in names:
        if name.endswith(".py") and (found := _WRITES_FILES.search(_without_odd_attributes(reader.get_record(name)))):
            raise UnsafeContentError(
                refusal(str(path), found[0].decode("ascii"), "it is a program that writes files or leaves the model")
            )


def _without_odd_attributes(program: bytes) -> bytes:
    """Take the word `getattr` off where TorchScript writes it itself: for names that are no identifiers, as `"0"`.

    No operation has such a name. The name and all else stay, so that nothing is hidden from the search.
    """
    for _ in range(_NESTED):
        program, count = _ODD_ATTRIBUTE.subn(rb'\1."\2"', program)
        if not count:
            break
    return program


_NESTED = 100  # modules in modules that one expression takes: what is deeper is refused
_ODD_ATTRIBUTE = re.compile(rb'\bgetattr\(((?:\w|\.(?:"[^"\\\n]+")?)+), "(?![A-Za-z_]\w*")([^"\\\n]+)"\)')

# Also `getattr`, which can spell the others, files that torchvision reads and writes, and classes of C++ but for those
# of quantized models (there are stores that listen on the network); what TorchScript itself writes has none of these.
# A variable or attribute may be called `save`, where it is plain that no dot is before it, or that it is not called.
_WRITES_FILES = re.compile(
    rb"\b(?:from_file|getattr|read_file|write_file)\b|(?<![(\[])(?<![\w,=] )\bsave\b(?! ?[:=])"
    rb"|\btorch\.classes\.(?!(?:quantized|xnnpack|sparse|mkldnn|mkldnn_prepacked|rnn|metal|vulkan)\.)\w+"
)


def _check_zip(source: Path | IO[bytes], policy: Policy, subject: str, options: dict[str, Any]) -> None:
    # Torch's own reader: another zip parser could be shown other bytes than torch will run.
    import torch

    try:
        reader = torch._C.PyTorchFileReader(str(source) if isinstance(source, Path) else source)
        if "constants.pkl" in reader.get_all_records():  # `torch.load` would run it; whole files of it are told before
            raise UnsafeContentError(f"{subject}: holds a TorchScript program, where only values belong. {REMEDY}")
        data = reader.get_record("data.pkl")
    except RuntimeError as error:
        raise ContentError(f"{subject}: not a whole file of torch: {str(error).splitlines()[0]}") from error
    policy.check_pickle(subject, io.BytesIO(data), **options)


def _check_legacy(file: IO[bytes], policy: Policy, subject: str, options: dict[str, Any]) -> None:
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT):
        raise UnsafeContentError(f"{subject}: in the tar format of torch before 0.2, which cannot be checked. {REMEDY}")
    file.seek(0)
    # The magic number, the protocol, the system's sizes, the object, the keys of the storages whose bytes follow.
    for number in range(5):
        value = policy.check_pickle(subject, file, **options)
        if number == 0 and value != MAGIC:
            raise ContentError(f"{subject}: a plain pickle, not a file of torch")


__all__ = ["MAGIC", "check_torch_file", "check_torchscript"]
