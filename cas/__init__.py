"""`cas`: a content-addressed local store for machine-learning checkpoints."""
