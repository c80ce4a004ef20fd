"""Reads HTML in tests: are its tags balanced, what does it say, does it reach outside itself."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "hr"}


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.words, self.ids, self.outside = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag, attrs):
        self._look(attrs)

    def _look(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "action", "data") and not value.startswith(("#", "data:")):
                self.outside.append(value)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{'> <'.join(self.open)}>"
        self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def balanced(html):
    """Parse `html`; every tag must be closed in order, every id be there once."""
    page = _Page()
    page.feed(str(html))
    page.close()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    return page


def text_of(html):
    """What a reader sees, with single spaces."""
    return re.sub(r"[\s\u202f]+", " ", " ".join(balanced(html).words))
