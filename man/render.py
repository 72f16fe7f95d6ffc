"""Render the manual as HTML into a folder, with an index: `python3 man/render.py FOLDER`.

mandoc(1) renders the pages. A symbolic link in `man/` is one more name of its page: the index lists
it there, and references to it lead to the page.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

MAN = Path(__file__).resolve().parent
STYLE = "style.css"
GROUPS = {
    "Overview": r"iobatch\.7",
    "Functions and classes": r".*\.3",
    "Coming from ...": r"iobatch-.*\.7",
    "Programs": r".*\.1",
}
FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="{style}">
</head>
<body>
{body}
</body>
</html>
"""


def title(page: str) -> str:
    """Return the title of a page, as in references to it: `iob_send(3)` for `iob_send.3`."""
    name, _, section = page.rpartition(".")
    return f"{name}({section})"


def links(names: dict[str, str], html: str) -> str:
    """Return HTML whose references lead to files of the folder, or are text.

    Args:
        names: the pages by each of their names.
        html: mandoc's; a reference to `iob_send.3` has `href="iob_send.3"`.

    """

    def link(found: re.Match[str]) -> str:
        page = names.get(found[1])
        return f'<a class="Xr" href="{page}.html">{found[2]}</a>' if page else found[2]

    return re.sub(r'<a class="Xr" href="([^"]*)">(.*?)</a>', link, html, flags=re.DOTALL)


def render(path: Path) -> str:
    """Return a page as HTML, without a head."""
    command = ["mandoc", "-T", "html", "-I", "os=iobatch", "-O", "fragment,man=%N.%S"]
    html = subprocess.run([*command, path], stdout=subprocess.PIPE, text=True, check=True).stdout
    # The table at the top repeats the name of the page.
    head = f'<header><a href="index.html">iobatch manual</a> / {title(path.name)}</header>'
    return re.sub(r'<table class="head">.*?</table>', head, html, count=1, flags=re.DOTALL)


def entry(page: str, names: dict[str, str], html: str) -> str:
    """Return a page's entry in the index: its title, its description and its other names."""
    description = re.search(r'<span class="Nd">(.*?)</span>', html, re.DOTALL)
    heads = re.findall(r'<code class="Nm">(.*?)</code>', html.partition("</section>")[0])
    linked = [name.rpartition(".")[0] for name, of in names.items() if of == page]
    own = page.rpartition(".")[0]
    others = sorted({*heads, *linked} - {own}, key=str.lower)
    also = f'\n<dd class="names">{", ".join(others)}</dd>' if others else ""
    text = " ".join(description[1].split()) if description else ""
    return f'<dt><a href="{page}.html">{title(page)}</a></dt>\n<dd>{text}</dd>{also}'


def main(folder: Path) -> None:
    """Write the pages, the index and the style sheet."""
    paths = sorted(MAN.glob("man*/*"), key=lambda path: path.name.lower())
    names = {path.name: path.resolve().name for path in paths}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MAN / STYLE, folder / STYLE)
    pages = {path.name: links(names, render(path)) for path in paths if not path.is_symlink()}
    for page, html in pages.items():
        text = FRAME.format(title=title(page), style=STYLE, body=html)
        (folder / f"{page}.html").write_text(text)
    body = ["<header>iobatch manual</header>", '<main class="index">']
    for group, pattern in GROUPS.items():
        entries = [
            entry(page, names, html) for page, html in pages.items() if re.fullmatch(pattern, page)
        ]
        if entries:
            body += [f"<h1>{group}</h1>", "<dl>", *entries, "</dl>"]
    body.append("</main>")
    text = FRAME.format(title="iobatch manual", style=STYLE, body="\n".join(body))
    (folder / "index.html").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the manual as HTML, with an index.")
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="where to write; made if missing"
    )
    arguments = parser.parse_args()
    try:
        main(arguments.folder)
    except subprocess.CalledProcessError as exc:
        sys.exit(f"man/render.py: {exc}")
    except OSError as exc:
        missing = "mandoc is not installed (Debian: apt-get install mandoc)"
        sys.exit(f"man/render.py: {missing if exc.filename == 'mandoc' else exc}")
    print(arguments.folder / "index.html")
