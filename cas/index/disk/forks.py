"""A process that forks while another thread imports something."""

from __future__ import annotations

import os
import threading

# Held while a thread imports something late, and while the process forks: a child that is forked in the middle of
# another thread's import would wait for that module for ever.
importing = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)
