"""The frame and the colors of every page that the server makes, and the page of an error."""

from __future__ import annotations

from html import escape

_STYLE = """\
:root { --text: #1f2328; --soft: #636c76; --line: #e3e6ea; --back: #fff; --over: #f3f5f8;
  --link: #0a58ca; --folder: #4c8fe0 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa3ad; --line: #2d333b;
  --back: #15191e; --over: #1f252c; --link: #7ab3ff; --folder: #5a9bea } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 3rem; max-width: 60rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0 .75rem 1.25rem; font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere }
a { color: var(--link); text-decoration: none }
a:hover { text-decoration: underline }
p { margin: 1rem .75rem; color: var(--soft); font-size: .85rem }
@media (max-width: 36rem) { body { padding-top: 1rem } }
"""


def page_start(title: str, style: str = "") -> str:
    """Return a page up to its content.

    Args:
        title: as HTML text.
        style: more rules of style.

    """
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{_STYLE}{style}</style>
</head>
<body>
"""


PAGE_END = "</body>\n</html>\n"


def error_page(status: int, phrase: str) -> str:
    """Return the page of an error, with a link to the root."""
    title = escape(f"{status} {phrase}")
    return f'{page_start(title)}<h1>{title}</h1>\n<p><a href="/">Home</a></p>\n{PAGE_END}'
