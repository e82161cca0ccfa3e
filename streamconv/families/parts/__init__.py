"""Rules, sizes and options that several families share."""
