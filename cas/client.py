"""Queries over a registry: `Determined`, `ExperimentReference`, `TrialReference`."""
