"""Pages: that their tags match, and that they load nothing from elsewhere."""

import base64
import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    """The tags that are open, and what pictures and links lead to."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [found["src"] or ""] if "src" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.names += [found["id"] or ""] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def whole_page(text: str) -> Tags:
    """The tags of a page, which are all closed, whose pictures are within it, and which loads and runs nothing."""
    page = Tags()
    page.feed(text)
    assert not page.open
    for source in page.sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "<script" not in text
    return page
