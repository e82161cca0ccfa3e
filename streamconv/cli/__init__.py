"""The command line: commands, signals, exit codes, progress."""
