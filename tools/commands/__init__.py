"""One file for each command, which `pruneopt.tools.main` imports when it is called."""
