"""Tables in Markdown, for every benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, left: Collection[int] = (0,)
) -> str:
    """Return a table: columns are aligned to the right, but for those of the numbers in ``left``;
    a row that is too short ends in empty cells."""
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    lines = [head, rule, *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
