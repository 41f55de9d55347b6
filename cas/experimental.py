"""The documented import path: `from cas.experimental import Determined, Checkpoint`."""
