"""`determined.pytorch.samplers`: can be imported; no data are drawn here."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks, placeholder

_MODULE = "determined.pytorch.samplers"

RepeatSampler = placeholder(f"{_MODULE}.RepeatSampler")
RepeatBatchSampler = placeholder(f"{_MODULE}.RepeatBatchSampler")
DistributedSampler = placeholder(f"{_MODULE}.DistributedSampler")
DistributedBatchSampler = placeholder(f"{_MODULE}.DistributedBatchSampler")
SkipSampler = placeholder(f"{_MODULE}.SkipSampler")
SkipBatchSampler = placeholder(f"{_MODULE}.SkipBatchSampler")
ReproducibleShuffleSampler = placeholder(f"{_MODULE}.ReproducibleShuffleSampler")
ReproducibleShuffleBatchSampler = placeholder(f"{_MODULE}.ReproducibleShuffleBatchSampler")


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
