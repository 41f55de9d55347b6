"""`determined.util`: can be imported; what it does is for training."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks, placeholders

_MODULE = "determined.util"

globals().update(placeholders(_MODULE, "download_gcs_blob_with_backoff filter_duplicates has_param merge_dicts"))


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
