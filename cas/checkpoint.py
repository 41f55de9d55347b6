"""`Checkpoint`: download, load, load_from_path, view: wires the rooms together."""
