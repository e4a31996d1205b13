"""Notebooks as pages of the site: a hook of mkdocs (``hooks: [docs/notebook_pages.py]``).

A notebook becomes Markdown with its committed outputs, so that mkdocs checks its links, finds its
words and shows its code as on any other page. The notebook itself can be downloaded from there.
Nothing is run: `run_tutorials.py` does that.
"""

from __future__ import annotations

import html
import json
import posixpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


class NotebookPage(File):
    """A file that mkdocs takes for a page, whatever its name ends with."""

    def is_documentation_page(self) -> bool:
        """It is one."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in place of every notebook, and the notebook beside it."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        folder, name = posixpath.split(file.src_uri)
        page = NotebookPage(
            file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls
        )
        page.content_string = markdown(json.loads(file.content_string), f"notebooks/{name}")
        beside = posixpath.join(folder, "notebooks", name)
        files.remove(file)
        files.append(page)
        files.append(File.generated(config, beside, content=file.content_bytes))
    return files


def markdown(notebook: dict[str, Any], download: str) -> str:
    """A page: text as it stands, code and printed text in fences, pictures in the page itself."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(fenced("python", source))
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(fenced("text", "".join(output["text"]).rstrip()))
                continue
            about = html.escape("".join(output["data"]["text/plain"]))
            picture = output["data"]["image/png"].replace("\n", "")
            parts.append(f'<img alt="{about}" src="data:image/png;base64,{picture}">')
    note = f"*This page is a notebook, with the outputs of a run: [download it]({download}).*"
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def fenced(language: str, text: str) -> str:
    """A block that shows `text`, which may have fences of its own."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
