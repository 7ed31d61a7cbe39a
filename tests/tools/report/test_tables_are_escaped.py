"""Names come from files of others: none becomes a part of a page or of a picture."""

from __future__ import annotations

from pruneopt.tools.report.front_plot import front_svg
from pruneopt.tools.report.tables import Section, Table, page, section_html

MARK = "<i a='b'>&\""


def test_page_shows_texts_as_texts() -> None:
    table = Table((MARK, "n"), ((MARK, "1"), ("x", MARK)), (0,))
    section = Section(MARK, (table,), (MARK,), (MARK,))
    found = page(MARK, MARK, [MARK], section_html(section), stopped=False)
    assert "<i" not in found
    assert found.count("&lt;i a=&#x27;b&#x27;&gt;&amp;&quot;") == 10


def test_picture_shows_texts_as_texts() -> None:
    point = {"point": 1, "score": 0.5, "costs": {"flops": 5}, "origin": MARK}
    front = {
        "network": MARK, "against": ["flops"], "original": {"flops": 10}, "points": [point],
        "baselines": [{**point, "origin": "original"}], "judged": 1,
    }  # fmt: skip
    found = front_svg(front, [point], MARK)
    assert "<i" not in found
    # The title, the description, and the head of the scale.
    assert found.count("&lt;i a=&#x27;b&#x27;&gt;&amp;&quot;") >= 3
