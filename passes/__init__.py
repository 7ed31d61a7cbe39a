"""Everything between a captured graph and a smaller one: analyses, passes and their parts, and the
manager that runs them. docs/architecture.md lists the rooms by their layers."""
