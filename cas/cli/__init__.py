"""The commands `cas` and `det`: parse, call one library function, print."""
