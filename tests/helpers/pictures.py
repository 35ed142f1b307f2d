"""Whether a picture can be read."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ["check_can_be_read", "check_no_overlap", "shown_texts"]

LEAST = 14.0  # points of letters: 7 where the picture is shown at half its size


def shown_texts(drawing: Figure) -> list[Text]:
    """All of a picture's texts, less the labels of ticks beyond the ends of their axes, which are not drawn."""
    beyond = set()
    for axis in (axis for axes in drawing.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    texts = drawing.findobj(Text)
    return [t for t in texts if t.get_visible() and t.get_text().strip() and t not in beyond]  # type: ignore[attr-defined]


def check_no_overlap(drawing: Figure) -> None:
    """No text covers another, or leaves the picture."""
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    renderer = canvas.get_renderer()
    # Of the letters alone: an annotation's arrow may go where it likes.
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in shown_texts(drawing)]
    whole = drawing.bbox
    for name, box in boxes:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, name
    for (name, one), (other, two) in itertools.combinations(boxes, 2):
        # A box has the height of its font, also where no letter reaches: two pixels are not ink.
        apart = one.x1 <= two.x0 or two.x1 <= one.x0 or one.y1 <= two.y0 + 2 or two.y1 <= one.y0 + 2
        assert apart, (name, other)


def check_can_be_read(drawing: Figure) -> None:
    """Nothing covers anything, at half size letters have 7 points, and axes have two ticks or more, or none."""
    check_no_overlap(drawing)
    texts = shown_texts(drawing)
    assert min(text.get_fontsize() for text in texts) >= LEAST
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
            # Of a single task there is one place alone.
            assert len(ticks) != 1 or len(set(axes.dataLim.intervalx)) == 1, axes.get_title(loc="left")
            assert len(ticks) <= 15
