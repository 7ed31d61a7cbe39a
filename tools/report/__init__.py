"""Words, tables and pictures for people: made from typed results, for terminal and page."""
