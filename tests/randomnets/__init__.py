"""Random networks out of every structure that pruneopt knows, and what must hold for each of
them."""
