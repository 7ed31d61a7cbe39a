"""Parts that both ways of capture read: exported programs, the table of modules, source lines."""
