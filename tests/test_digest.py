"""Digests know what decides a result, and nothing else."""

from pathlib import Path

from pruneopt.digest import source_digest


def test_source_is_known_by_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.py"

    def found(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return source_digest(path)

    plain = found("def f(x):\n    return x + 1\n")
    assert found("# Why.\n\ndef f(x):\n\n    return x + 1  # one more\n") == plain
    assert found("def f(x):\n    return x + 2\n") != plain
    assert found("def f(x:\n") != found("def f(x:\n\n"), "no source: its bytes"
