"""How a checkpoint's files get here: from its storage or through its master, whole, in part, or for a whole job."""
