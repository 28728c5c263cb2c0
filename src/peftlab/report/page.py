"""The page as one file: the template filled with its data, styles and scripts. Knows nothing of records.

Everything that comes from records stands in one JSON block, in which `<`, `>` and `&` are escaped, and the scripts
write it as text, never as markup. A content security policy allows those scripts by their digests and nothing else, so
the page can neither load nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from peftlab.errors import UserError
from peftlab.records.atomic import write_atomic
from peftlab.records.record import dumps
from peftlab.report.contents import Page

SECTIONS = ("scores", "cost", "curves", "claims", "settings", "left_out")
"""In the order of the page. A section is `sections/<name>.js`, which calls `page.section`."""

MARK = '<meta name="generator" content="peftlab report">'
_VENDOR = (("d3.min.js", "d3.LICENSE"), ("plot.umd.min.js", "plot.LICENSE"))
_PLACE = re.compile(r"<!-- @(\w+) -->")


def render(contents: Page) -> str:
    """The whole page.

    Example:
        >>> render(Page(folder="results", peftlab="0", newest=None, where=None, sheets=(), runs=(), left_out=(),
        ...     statuses={})).startswith("<!DOCTYPE html>")
        True
    """
    scripts = [*(_file(f"vendor/{name}") for name, _ in _VENDOR), _file("page.js")]
    scripts += [_file(f"sections/{name}.js") for name in SECTIONS]
    assert not any("</script" in script.lower() for script in scripts)
    licences = [f"<!-- {name}:\n{_file(f'vendor/{licence}')}-->" for name, licence in _VENDOR]
    return _filled(
        _file("template.html"),
        {
            "policy": f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            "mark": MARK,
            "title": html.escape(f"peftlab: {contents.folder}"),
            "style": f"<style>\n{_file('page.css')}</style>",
            "data": f'<script type="application/json" id="data">{_json(contents)}</script>',
            "scripts": "\n".join([*licences, *(f"<script>{script}</script>" for script in scripts)]),
        },
    )


def write(path: Path, text: str) -> None:
    """Write a page, whole or not at all, in place of an earlier page.

    Raises:
        UserError: The folder is missing, or something that is no page is in the way.
    """
    if path.is_dir():
        raise UserError(f"-o {path}: that is a folder", fix=f"name a file: -o {path / 'report.html'}")
    if not path.parent.is_dir():
        raise UserError(f"-o {path}: there is no folder {path.parent}", fix=f"make it: mkdir -p {path.parent}")
    if path.exists() and not _is_page(path):
        raise UserError(
            f"-o {path}: a file that is no page of peftlab is there", fix="choose another name, or remove it"
        )
    write_atomic(path, text)


def _is_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return MARK.encode() in file.read(4096)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """In one pass: what is filled in is not searched again."""
    return _PLACE.sub(lambda found: parts[found[1]], template)


def _json(contents: Page) -> str:
    """JSON that HTML cannot take for markup: neither the end of the script nor a comment."""
    text = dumps(contents.model_dump(mode="python"), indent=None)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _file(name: str) -> str:
    return resources.files("peftlab.report").joinpath(name).read_text(encoding="utf-8")
