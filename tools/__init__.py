"""The command line: its commands, the bundles that they write, and the reports."""
