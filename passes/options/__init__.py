"""Options of passes and parts: their types, their text, the names of parts, the base classes."""
