"""What can be done with a store, one module for each: what a command does, a script calls here."""
