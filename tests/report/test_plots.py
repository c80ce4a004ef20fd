"""Charts as HTML fragments: where marks lie, what they say, what is left out."""

import math
import re
from itertools import pairwise

import pytest

from mixwell.report import axes, plots
from tests.report.pages import balanced


def points(html):
    """Points of every polyline, as lists of (x, y) in thousandths of the frame from its top left."""
    paths = re.findall(r'points="([^"]*)"', str(html))
    return [[tuple(map(float, p.split(","))) for p in path.split()] for path in paths]


def line(x, y, **options):
    return plots.Series(name=options.pop("name", "a"), x=x, y=y, **options)


def test_line_chart_maps_data_to_the_frame():
    html = plots.line_chart([line([0, 5, 10], [1.0, 2.0, 3.0])], x_label="tokens", y_label="loss", y_range=(1.0, 3.0))
    assert points(html) == [[(0, 1000), (500, 500), (1000, 0)]]
    assert 'data-x0="0"' in html and 'data-y1="3.0"' in html
    balanced(html)


def test_line_chart_leaves_out_what_is_not_finite_and_pads_the_rest():
    html = plots.line_chart([line([0, 1, 2, 3], [math.nan, 1.0, math.inf, 2.0])], x_label="x", y_label="y")
    (drawn,) = points(html)
    assert [x for x, _ in drawn] == [0, 1000]
    assert drawn[0][1] == pytest.approx(1000 * (1 - 0.05 / 1.1), abs=0.1)


def test_line_chart_without_a_point_is_empty_and_one_point_is_a_dot():
    assert plots.line_chart([line([], [])], x_label="x", y_label="y") == ""
    assert points(plots.line_chart([line([3], [4])], x_label="x", y_label="y")) == [[(500, 500), (500, 500)]]


def test_line_chart_thins_long_lines_and_keeps_the_last_point():
    count = 10 * plots.MAX_POINTS + 3
    rising = line(range(count), range(count))
    (drawn,) = points(plots.line_chart([rising], x_label="x", y_label="y", y_range=(0, count - 1)))
    assert plots.MAX_POINTS / 2 < len(drawn) <= plots.MAX_POINTS and drawn[-1] == (1000, 0)


def test_faint_lines_have_no_legend_and_names_are_escaped():
    html = plots.line_chart([line([0, 1], [0, 1], name="<b>", slot=3), line([0, 1], [0, 2], name="raw", faint=True)],
                            x_label="x", y_label="y")
    assert html.count("<li") == 1 and '<li class="s3">&lt;b&gt;</li>' in html and "<b>" not in html
    assert 'class="s0 faint"' in html


@pytest.mark.parametrize(("low", "high"), [(0, 3.2e6), (2.3, 3.9), (-1, 1), (1e-9, 5e-9), (7, 7)])
def test_ticks_are_round_inside_and_even(low, high):
    found = axes.ticks(low, high)
    assert 1 <= len(found) <= 11 and low - 1e-12 <= found[0] and found[-1] <= high * (1 + 1e-12) + 1e-12
    steps = {round((b - a) / (found[1] - found[0]), 9) for a, b in pairwise(found)}
    assert steps <= {1.0}
    if len(found) > 1:
        assert f"{found[1] - found[0]:e}"[0] in "125"


def test_tick_labels_share_their_decimals():
    html = plots.line_chart([line([0, 2e6], [2.4, 3.1])], x_label="x", y_label="y", y_range=(2.4, 3.1))
    labels = [text.replace("\u202f", " ") for text in re.findall(r"%\">([^<]*)</span>", html)]
    assert labels == ["2.4", "2.6", "2.8", "3.0", "0", "500 k", "1 M", "1.5 M", "2 M"]


def test_smooth_equals_a_loop_and_keeps_straight_beginnings():
    values = [float((7 * i) % 11) for i in range(30)]
    expected = []
    for i in range(30):
        reach = min(3, i)
        window = [values[j] for j in range(i - reach, i + reach + 1) if j < 30]
        expected.append(sum(window) / len(window))
    assert plots.smooth(values, 7) == pytest.approx(expected, rel=1e-12)
    assert plots.smooth(values, 1) == values
    assert plots.smooth([0.0, 1.0, 2.0, 3.0, 4.0], 3)[:4] == [0.0, 1.0, 2.0, 3.0]


def test_dot_chart_places_dots_and_skips_missing_values():
    scores = {"dense": [1.0, 2.0], "moe": [None, 1.5]}
    html = plots.dot_chart(["code", "prose"], scores, label="bits per byte", decimals=2)
    dots = re.findall(r'<i class="s(\d)" style="left:([\d.]+)%;top:(\d+)%" title="([^"]*)"', html)
    assert [dot[0] for dot in dots] == ["0", "0", "1"]
    assert [dot[3] for dot in dots] == ["dense: 1.00", "dense: 2.00", "moe: 1.50"]
    assert [float(left) for _, left, _, _ in dots] == pytest.approx([4.55, 95.45, 50.0], abs=0.01)
    assert dots[1][2] != dots[2][2]  # apart, so that equal values would both be seen
    assert plots.dot_chart(["code"], {"dense": [None]}, label="") == ""
    balanced(html)


def test_bars_begin_at_zero():
    html = plots.bar_chart(["before", "after"], {"size": [400.0, 100.0]}, form="{:.0f} B".format, colors={"size": 2})
    assert re.findall(r"width:([\d.]+)%", html) == ["100.00", "25.00"] and "100 B</b>" in html and "bar s2" in html
    assert "legend" not in html and "legend" in plots.bar_chart(["x"], {"a": [1.0], "b": [None]})
    with pytest.raises(ValueError, match="bars begin at zero, got -1"):
        plots.bar_chart(["x"], {"a": [-1.0]})
    assert plots.bar_chart([], {"a": []}) == ""


def test_heat_map_colours_by_distance_from_the_centre():
    html = plots.heat_map([[0.0, 0.25, 0.5, 0.9, math.nan]], rows=["0"], columns=list("abcde"), low=0.0, center=0.25,
                          high=0.5, corner="layer", form=lambda v: f"{v:.2f}", beside={"entropy": ["0.93"]})
    cells = re.findall(r'<td class="(hot|cold)" style="--depth:([\d.]+)" title="([^"]*)">([^<]*)</td>', html)
    assert [(c, float(d)) for c, d, _, _ in cells] == [("cold", 1.0), ("hot", 0.0), ("hot", 1.0), ("hot", 1.0)]
    assert cells[3][2] == "layer 0, d: 0.90" and cells[3][3] == "0.90"
    assert '<td class="beside">0.93</td>' in html and "–" in html
    balanced(html)


def test_a_wide_heat_map_says_its_numbers_in_titles_only():
    html = plots.heat_map([[0.1] * 64], rows=["0"], columns=[str(i) for i in range(64)], low=0, center=0.05, high=1)
    assert html.count('">0.100</td>') == 0 and html.count(": 0.100") == 64 and "heat wide" in html


def test_heat_map_refuses_stops_out_of_order():
    with pytest.raises(ValueError, match="low <= center <= high"):
        plots.heat_map([[1.0]], rows=["a"], columns=["b"], low=0.0, center=2.0, high=1.0)


def test_lanes_branch_where_a_second_child_begins():
    tree = [("data", ""), ("dense", "data"), ("moe", "dense"), ("moe-trained", "moe"), ("dense-trained", "dense")]
    html = plots.lanes([plots.Node(name=n, title=n, detail="<x>", parent=p) for n, p in tree])
    across = [int(x) for x in re.findall(r'cx="(\d+)"', html)]
    assert across == [11, 11, 11, 11, 33] and html.count("<path") == 4 and "&lt;x&gt;" in html
    assert html.count("C") == 1  # one bend, from dense to dense-trained
    balanced(html)


def test_slots_go_round():
    assert plots.slots(list("abcdefghia")) == dict(zip("abcdefghi", [*range(8), 0]))
