"""The text form of a graph and its JSON form: printing, and parsing with errors at their place."""
