"""Looks at the built site as a reader does: links and anchors, alternative texts, and its width on a phone.

    python scripts/check_site.py build/site

Links, anchors and pictures are looked for in the files. Then each page is opened in a headless Chromium, in a
frame of 390 pixels: nothing but what scrolls by itself (tables, code) may be wider, every picture has to be
drawn, and the scripts may not fail. Without a browser this part is left out, and said to be. ``CHROMIUM`` names
the browser where it is not one of the usual.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH = 390  # of a phone, in CSS pixels
PATIENCE = 120  # seconds for all pages

# Opens one page after the other in a frame, and tells the server what it saw.
OBSERVER = """<!doctype html><title>observer</title>
<iframe id="frame" style="width:%(width)dpx;height:800px;border:0"></iframe>
<script>
const seen = {}, frame = document.getElementById("frame");
const wait = ms => new Promise(done => setTimeout(done, ms));
async function look(page) {
  const loaded = new Promise(done => { frame.onload = done; });
  frame.src = "/" + page;
  await loaded;
  await wait(50);
  const inside = frame.contentWindow, root = inside.document.documentElement, found = [];
  for (const picture of inside.document.images) {
    picture.loading = "eager";
    await picture.decode().catch(() => found.push("picture " + picture.src + " is not drawn"));
  }
  if (root.scrollWidth > %(width)d) {
    const scrolls = node => node && node !== root && (
      /auto|scroll|hidden/.test(inside.getComputedStyle(node).overflowX) || scrolls(node.parentElement));
    const wide = [...inside.document.body.querySelectorAll("*")].filter(
      node => node.getBoundingClientRect().right > %(width)d + 1 && !scrolls(node.parentElement));
    const first = wide.length ? wide[wide.length - 1].outerHTML.slice(0, 120) : "";
    found.push("is " + root.scrollWidth + " pixels wide on a phone of %(width)d: " + first);
  }
  return found;
}
(async () => {
  for (const page of %(pages)s) seen[page] = await look(page).catch(error => [String(error)]);
  await fetch("/.seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>
"""


class _Read(HTMLParser):
    """The links, anchors and pictures of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.without_words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given and tag != "meta")
        for name in ("href", "src"):
            if name in given:
                self.links.append(given[name])
        if tag == "img" and not given.get("alt", "").strip():
            self.without_words.append(given.get("src", ""))


def faults_of_files(site: Path) -> list[str]:
    """Links into the site that lead nowhere, anchors that there are not, pictures without words."""
    pages = {path.resolve(): _Read() for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        page.feed(path.read_text(encoding="utf-8"))
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        if name.name == "404.html":  # whose links are those of the root, wherever the site will lie
            continue
        faults += [f"{name}: picture {src} has no alternative text" for src in page.without_words]
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if there.is_dir():
                there /= "index.html"
            if not there.exists():
                faults.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and there in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[there].ids and not anchor.startswith("__"):
                    faults.append(f"{name}: {link} names a place that there is not")
    return faults


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    chosen = os.environ.get("CHROMIUM")
    return next((path for name in ([chosen] if chosen else BROWSERS) if (path := shutil.which(name))), None)


def faults_on_a_phone(site: Path, browser: str) -> list[str]:
    """What a browser sees at the width of a phone.

    Raises:
        TimeoutError: if the browser does not come to its end.
    """
    pages = [p.relative_to(site).as_posix() for p in sorted(site.rglob("*.html")) if p.name != "404.html"]
    seen: dict[str, list[str]] = {}
    done = threading.Event()

    class Server(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/.observer":
                return super().do_GET()
            text = (OBSERVER % {"width": WIDTH, "pages": json.dumps(pages)}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text)
            return None

        def do_POST(self) -> None:
            seen.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Server, directory=str(site))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += [f"--user-data-dir={profile}", "--window-size=800,900", "--remote-debugging-port=0"]
        address = f"http://127.0.0.1:{server.server_port}/.observer"
        opened = subprocess.Popen(
            [browser, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            if not done.wait(PATIENCE):
                raise TimeoutError(f"{browser} did not look at all {len(pages)} pages within {PATIENCE} s")
        finally:
            opened.terminate()
            opened.wait()
            server.shutdown()
    return [f"{page}: {fault}" for page, faults in seen.items() for fault in faults]


def main() -> int:
    """1 if there are faults, each on a line of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, help="folder of the built site")
    site = parser.parse_args().site
    if not (site / "index.html").exists():
        parser.error(f"{site} has no index.html: `make docs` builds a site into build/site")
    faults = faults_of_files(site)
    browser = find_browser()
    if browser is None:
        print(f"Not looked at on a phone: there is no browser here ({', '.join(BROWSERS)}, or CHROMIUM=PATH).")
    else:
        faults += faults_on_a_phone(site, browser)
    for fault in faults:
        print(fault)
    pages = sum(1 for _ in site.rglob("*.html"))
    print(f"{pages} pages, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
