"""Every kind of mistake in the text form is shown at its place: line, column, and the characters in
question."""

import pytest

from pruneopt.errors import UserError
from pruneopt.ir.text.parser import parse_graph

TEXT = """\
graph @g(%x: f32[N, 3, 8, 8]) {
  channels $a = 4 frozen("why") blocks 2 keep [0:1, 2:3]

  param @w: f32[$a, 3, 3, 3]
  alias @tied = @w

  %conv = aten.conv2d(%x, @w) {padding = [1, 1], groups = 1}: f32[N, $a, 8, 8]\
 loc("conv" Conv2d "net.py":3)
  %s, %t = aten.split_with_sizes(%conv) {split_sizes = [2, 2], dim = 1}\
: f32[N, $a[0:2], 8, 8], f32[N, $a[2:4], 8, 8]
  %cat = aten.cat([%s, %t]) {dim = 1}: f32[N, $a, 8, 8]
  return {"out": %cat}
}
"""

# (what is replaced, by what, the line and the column of the mistake, its characters, the message)
MISTAKES = [
    # The header
    ("graph @g", "grap @g", 1, 1, "grap", "expected 'graph', found 'grap'"),
    ("graph @g", "graph g", 1, 7, "g", "expected the graph's name (@name), found 'g'"),
    (
        "(%x: f32[N, 3, 8, 8]) {",
        "(%x: f32[N, 3, 8, 8] {",
        11,
        2,
        "",
        "the list of inputs has no closing ')'",
    ),
    (
        "(%x: f32[N, 3, 8, 8])",
        "(%x: f32[N, 3, 8, 8], %x: f32[])",
        1,
        31,
        "%x",
        "%x is already defined",
    ),
    ("(%x:", "(@x:", 1, 10, "@x", "expected an input (%name), found '@x'"),
    (
        "$a = 4",
        "$a = 4.5",
        2,
        17,
        "4.5",
        "expected the width of the group (an integer), found '4.5'",
    ),
    ('frozen("why")', "frozen(why)", 2, 26, "why", "expected the reason in quotes, found 'why'"),
    ("keep [0:1, 2:3]", "keep [0:1 2:3]", 2, 52, "2", "expected ',' or ']', found '2'"),
    ("\n\n  param", "\n  channels $a = 5\n\n  param", 3, 12, "$a", "$a is already defined"),
    ("  alias", "  buffer @w: f32[]\n  alias", 5, 10, "@w", "@w is already defined"),
    ("@tied = @w", "@tied = @v", 5, 17, "@v", "undefined value @v"),
    ("@tied = @w", "@w = @w", 5, 9, "@w", "@w is already defined"),
    # Types
    ("@w: f32[", "@w: f23[", 4, 13, "f23", "unknown dtype 'f23'; did you mean 'f32'?"),
    ("@w: f32[$a", "@w: f32[$aa", 4, 17, "$aa", "unknown channel group $aa; did you mean '$a'?"),
    ("@w: f32[$a", "@w: f32[$a[2:5]", 4, 20, "2:5", "$a has units 0:4"),
    ("@w: f32[$a", "@w: f32[$a / 3", 4, 22, "3", "the 4 channels of $a do not split into 3 blocks"),
    ("@w: f32[$a", "@w: f32[%x", 4, 17, "%x", "expected a dimension, found '%x'"),
    ("@w: f32[$a", "@w: f32[4~($b)#0", 4, 20, "$b", "unknown channel group $b"),
    ("@w: f32[$a", "@w: f32[(N*2)", 4, 22, ",", "expected '/', found ','"),
    # Ops
    (
        "aten.conv2d(",
        "aten.conv2dd(",
        7,
        11,
        "aten.conv2dd",
        "unknown op: the op aten.conv2dd.default does not exist",
    ),
    ("aten.conv2d(", "aten.conv2d.overloads(", 7, 11, "aten.conv2d.overloads", "unknown op"),
    ("aten.conv2d(", "conv2d(", 7, 11, "conv2d", "unknown op"),
    ("(%x, @w)", "(%y, @w)", 7, 23, "%y", "undefined value %y"),
    ("(%x, @w)", "(%conv, @w)", 7, 23, "%conv", "undefined value %conv"),
    ("(%x, @w)", "(%x, @x)", 7, 27, "@x", "undefined value @x"),
    ("(%x, @w)", "(%x)", 7, 11, "aten.conv2d", "aten.conv2d lacks its operand 'weight'"),
    ("(%x, @w)", "(%x, none)", 7, 27, "none", "the operand 'weight' must not be none"),
    ("(%x, @w)", "(%x, [@w])", 7, 27, "[", "the operand 'weight' is one tensor"),
    (
        "(%x, @w)",
        "(%x, @w, none, %x)",
        7,
        37,
        "%x",
        "aten.conv2d takes 3 operands (input, weight, bias)",
    ),
    ("(%x, @w)", '(%x, "w")', 7, 27, '"w"', "an operand is a value, a number or 'none'"),
    ("(%x, @w)", "(%x @w)", 7, 26, "@w", "expected ',' or ')', found '@w'"),
    ("([%s, %t])", "(%s)", 9, 19, "%s", "the operand 'tensors' is a list of tensors"),
    ("%cat = ", "%conv = ", 9, 3, "%conv", "%conv is already defined"),
    ("%s, %t = ", "%s, %s = ", 8, 7, "%s", "%s is already defined"),
    ("%cat = ", "@cat = ", 9, 3, "@cat", "expected a result (%name), found '@cat'"),
    (
        ", f32[N, $a[2:4], 8, 8]",
        "",
        8,
        12,
        "aten.split_with_sizes",
        "aten.split_with_sizes has 2 results and 1 types",
    ),
    # Attributes
    (
        "padding =",
        "pading =",
        7,
        32,
        "pading",
        "aten.conv2d has no attribute 'pading' (it has stride, padding,",
    ),
    ("groups = 1", "padding = 1", 7, 50, "padding", "the attribute 'padding' is given twice"),
    (
        "split_sizes = [2, 2], ",
        "",
        8,
        12,
        "aten.split_with_sizes",
        "aten.split_with_sizes lacks its attribute",
    ),
    ("groups = 1", "groups = f33", 7, 59, "f33", "unknown word 'f33'; did you mean 'f32'?"),
    ("groups = 1", "groups = }", 7, 59, "}", "expected a value, found '}'"),
    ("groups = 1", "groups 1", 7, 57, "1", "expected '=', found '1'"),
    # Locations and what is returned
    ('loc("conv"', "loc(conv", 7, 84, "conv", "expected the module's name in quotes, found 'conv'"),
    ('"net.py":3', '"net.py":x', 7, 107, "x", "expected the line (an integer), found 'x'"),
    ("return", "retrun", 10, 3, "retrun", "unknown op"),
    ('{"out": %cat}', "{out: %cat}", 10, 11, "out", "expected a key in quotes, found 'out'"),
    ('{"out": %cat}', "(%cat)", 10, 15, ")", "expected ',', found ')'"),
    ('{"out": %cat}', "mode", 10, 10, "mode", "the network cannot return 'mode'"),
    ('{"out": %cat}', "%cats", 10, 10, "%cats", "undefined value %cats; did you mean '%cat'?"),
    ("\n}\n", "\n", 10, 23, "", "expected '}', found the end of the text"),
    ("\n}\n", "\n}\nmore", 12, 1, "more", "expected the end of the text, found 'more'"),
    # Characters
    ("(%x, @w)", "(%x; @w)", 7, 25, ";", "unexpected character ';'"),
    ("(%x, @w)", "(% x, @w)", 7, 23, "%", "a name must follow '%'"),
    ("groups = 1", "groups = 1x", 7, 59, "1x", "bad number '1x'"),
    ("groups = 1", "groups = 1.2.3", 7, 59, "1.2.3", "bad number '1.2.3'"),
    ('"out"', '"o\\qt"', 10, 13, '\\qt"', "bad string: invalid \\escape"),
    ('"why"', '"why', 2, 26, '"why) blocks 2 keep [0:1, 2:3]', "this string has no closing quote"),
    (
        "@w: f32[$a",
        '@"w: f32[$a',
        4,
        9,
        '@"w: f32[$a, 3, 3, 3]',
        "this string has no closing quote",
    ),
]


def test_the_text_without_mistakes_is_read() -> None:
    assert len(parse_graph(TEXT).ops) == 3


@pytest.mark.parametrize(("old", "new", "line", "column", "marked", "message"), MISTAKES)
def test_mistake(old: str, new: str, line: int, column: int, marked: str, message: str) -> None:
    assert TEXT.count(old) >= 1
    text = TEXT.replace(old, new, 1)
    with pytest.raises(UserError) as caught:
        parse_graph(text, name="net.pir")
    first, shown, carets = str(caught.value).splitlines()
    assert first.startswith(f"net.pir:{line}:{column}: error: {message}")
    assert shown == "  " + text.splitlines()[line - 1]
    assert carets == " " * (column + 1) + "^" * max(1, len(marked))
    assert text.splitlines()[line - 1][column - 1 :].startswith(marked)


def test_carets_stand_below_what_tabs_precede() -> None:
    with pytest.raises(UserError) as caught:
        parse_graph("graph @g() {\n\treturn \t%x\n}")
    assert str(caught.value).splitlines()[1:] == ["  \treturn \t%x", "  \t       \t^^"]


def test_an_empty_text_is_no_graph() -> None:
    with pytest.raises(
        UserError, match=r"<text>:1:1: error: expected 'graph', found the end of the text"
    ):
        parse_graph("")
