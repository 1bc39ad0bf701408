"""Hooks of mkdocs. What a page links to outside docs/ comes along with the site, as text.

The pages are written for a checkout, where ``../tests/test_sock.py`` is a file beside them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)")
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def outside(page: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to, None if it stays in docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if path.startswith("docs/") or not (ROOT / path).exists():
        return None
    return path


def published(path: str) -> str:
    """Where on the site a file of the repository is."""
    return f"source/{path}.txt"


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for link, _ in LINK.findall(page.content_string):
            path = outside(page.src_uri, link)
            if path is None or files.get_file_from_path(published(path)):
                continue
            source = ROOT / path
            if source.is_dir():
                text = "\n".join(sorted(entry.name for entry in source.iterdir())) + "\n"
                files.append(File.generated(config, published(path), content=text))
            else:
                files.append(File.generated(config, published(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead those links to where the files are on the site."""
    here = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match[1])
        if path is None:
            return match[0]
        return f"]({posixpath.relpath(published(path), here or '.')})"

    return LINK.sub(lead, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles away by which docstrings tell Sphinx what a name is."""
    return ROLE.sub("", html)
