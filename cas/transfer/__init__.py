"""Get what is not here: remotes, plans, parallel checked reads, progress."""
