"""One run and its files, and the parts of the command that makes many."""
