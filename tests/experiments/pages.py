"""Pages as a reader's browser reads them."""

import json
import os
import shutil
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """What of a page matters: its elements, the text of its cells, its JSON, its headings and ids."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.cells, self.json, self.headings, self.text = [], [], [], [], ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.elements.append((tag, found))
        self._open.append("json" if found.get("type") == "application/json" else tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() not in (tag, "json"):
            pass

    def handle_data(self, data):
        where = self._open[-1] if self._open else ""
        if where == "json":
            self.json.append(json.loads(data))
        elif where in ("td", "th"):
            self.cells[-1] += data.replace("\u00a0", " ")
        if where not in ("script", "style", "json"):
            self.text += data

    def ids(self) -> list[str]:
        return [found["id"] for _, found in self.elements if "id" in found]


def find_chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no Chromium on PATH, and CI=true asks for one; install it, or run with -m 'not browser'")
    return found or pytest.skip("no Chromium on PATH")


def visit(browser, file, width):
    """Opens the page; returns it with what it printed and what it asked for beside itself."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    troubles = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))

    def route(request):
        if request.request.url == file.as_uri() or request.request.url.startswith("data:"):
            request.continue_()
        else:
            troubles.append(request.request.url)
            request.abort()

    tab.route("**/*", route)
    tab.goto(file.as_uri())
    return tab, troubles
