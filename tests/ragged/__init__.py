"""Small problems with several candidates of different widths in one launch, and how results are
compared."""
