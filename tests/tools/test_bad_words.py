"""Words of the command line that no run could use end in one sentence and exit code 2."""

from __future__ import annotations

import pytest

from pruneopt.tools.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "a\udcff.py"], "is not UTF-8: rename the file"),
        (["inspect", "a" * 5000 + ".py"], "the name of a file is too long"),
        (["compile", "zoo:resnet20", "--seed", str(2**63)], "is larger than 64 bits hold"),
        (["compile", "zoo:resnet20", "--seed", "9" * 5000], "--seed"),
    ],
)
def test_word_is_refused_in_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
