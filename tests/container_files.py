"""Files as frameworks write them, small or large, honest or not."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Mapping
from typing import Any


def torch_file(state: Mapping[str, Any], name: str = "model") -> bytes:
    """What `torch.save(state, "<name>.pth")` writes."""
    import tempfile
    from pathlib import Path

    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pth"
        torch.save(state, path)
        return path.read_bytes()


def zip_file(records: Mapping[str, bytes], *, compress: bool = False) -> bytes:
    """An archive as Python's zipfile writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            archive.writestr(info, data)
    return buffer.getvalue()


def npz_file(arrays: Mapping[str, Any], *, compress: bool = False) -> bytes:
    """What `numpy.savez` writes."""
    import numpy as np

    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def safetensors_file(tensors: Mapping[str, bytes]) -> bytes:
    """A safetensors file of byte tensors."""
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def directory_changed(data: bytes, record: int, **values: int) -> bytes:
    """Change what the directory of an archive says of one record: `crc`, `length`, `size`, `start`, `method`."""
    places = {"method": (10, "<H"), "crc": (16, "<I"), "length": (20, "<I"), "size": (24, "<I"), "start": (42, "<I")}
    at = int.from_bytes(data[-6:-2], "little")
    for _ in range(record):
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    changed = bytearray(data)
    for name, value in values.items():
        offset, form = places[name]
        struct.pack_into(form, changed, at + offset, value)
    return bytes(changed)


def noise(count: int, seed: int = 0) -> bytes:
    """Bytes that nothing else has."""
    return random.Random(seed).randbytes(count)
