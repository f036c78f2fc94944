"""mkdocs: what a page links to outside of docs/ is not on the site, so there it is text alone."""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered."""
    docs = Path(config["docs_dir"]).resolve()
    here = Path(page.file.abs_src_path).parent

    def kept(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if "://" in target or (here / target).resolve().is_relative_to(docs):
            return link[0]
        return text

    return LINK.sub(kept, markdown)
