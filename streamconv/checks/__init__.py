"""Results proven against their manifest or their source, and checkpoints compared."""
