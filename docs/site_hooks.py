"""What mkdocs does not do by itself for the docs site; `mkdocs.yml` names this file.

Pages of the repository that lie outside `docs/` (the results of `bench/`, the changelog, CONTRIBUTING.md) become pages
of the site, and links between them and the pages of `docs/` lead to the pages of the site. A link to any other file of
the repository keeps its words and loses its target, since the site does not have that file.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh.md",
}
"""Pages of the repository by path, and what they are called on the site."""
RESULTS = "bench/results/"
LEADS = {
    "cli.md": "全部命令及其选项，由代码生成。示例可以直接复制。",
    "recipe.md": "配方的全部章节和键，由代码生成：键、取值、默认值和说明。",
    "python.md": "全部公开的 Python 名称，由代码中的文档字符串生成。",
    "errors.md": "spantune 会报告的全部错误，由测试生成。每条信息都说明位置、发现了什么、应当是什么、怎么办。",
    "results.md": "全部测量，每项都写明机器、版本、提交和命令，可以重复。",
}
"""What the Chinese site says above a page that has no Chinese of its own."""
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@event_priority(-200)  # after i18n has sorted the files by language
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside `docs/`, in English, to the site of each language."""
    language = str(config.plugins["i18n"].current_language)
    prefix = "" if language == "en" else f"{language}/"
    for path in [*sorted((ROOT / RESULTS).glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        name = site_path(path.relative_to(ROOT).as_posix())
        file = File.generated(config, str(name), content=path.read_text(encoding="utf-8"))
        file.dest_uri = prefix + file.dest_uri
        file.url = file._get_url(config.use_directory_urls)
        file.locale, file.localization, file.norm_src_uri = "en", None, file.src_uri
        file.locale_alternate_of, file.alternates = language, {language: file}
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to other pages of the repository at the site's."""
    here = repository_path(page.file.src_uri)
    if here.endswith(".zh.md"):
        english = (ROOT / here.replace(".zh.md", ".md")).read_text(encoding="utf-8")
        markdown = _with_english_anchors(markdown, english)
    if config.plugins["i18n"].current_language == "zh" and not page.file.src_uri.endswith(".zh.md"):
        markdown = _with_lead(markdown, LEADS.get(page.file.src_uri, "") + "本页没有中文译文，以下为英文原文。")
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        parts += [_relink(markdown[end : fence.start()], here), fence.group()]
        end = fence.end()
    return "".join([*parts, _relink(markdown[end:], here)])


def site_path(path: str) -> str | None:
    """Return what a file of the repository is called on the site; None: it is not there."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith(RESULTS) and path.endswith(".md"):
        return "results/" + path.removeprefix(RESULTS)
    return path.removeprefix("docs/") if path.startswith("docs/") and not path.endswith(".py") else None


def repository_path(path: str) -> str:
    """Return the file of the repository that a page of the site is made from."""
    if path.startswith("results/"):
        return RESULTS + path.removeprefix("results/")
    names = {site: source for source, site in OUTSIDE.items() if site not in ("index.md", "index.zh.md")}
    return names.get(path, f"docs/{path}")


def _with_lead(markdown: str, lead: str) -> str:
    """Put a note below the first heading."""
    before, heading, after = markdown.partition("# ")
    title, _, rest = after.partition("\n")
    return f"{before}{heading}{title}\n\n!!! note\n    {lead}\n\n{rest}" if heading else markdown


def _with_english_anchors(markdown: str, english: str) -> str:
    """Give each heading of a Chinese page the anchor of the English one too, so that links from English pages work.

    A heading whose own anchor is the same already gets none: an id may occur once only in a page.
    """
    lines = markdown.splitlines()
    pairs = list(zip(_headings(markdown), _headings(english), strict=False))
    for (number, title), (_, english_title) in reversed(pairs):
        anchor = _slug(english_title)
        if anchor != _slug(title):
            lines[number:number] = [f'<a id="{anchor}"></a>', ""]
    return "\n".join([*lines, ""])


def _slug(title: str) -> str:
    """The anchor that mkdocs gives a heading."""
    return str(slugify(case="lower")(title.replace("`", ""), "-"))


def _headings(markdown: str) -> list[tuple[int, str]]:
    """The headings of a page below the first, with the numbers of their lines."""
    headings: list[tuple[int, str]] = []
    fenced = False
    for number, line in enumerate(markdown.splitlines()):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"##+ ", line):
            headings.append((number, line.lstrip("# ")))
    return headings


def _relink(text: str, here: str) -> str:
    def replace(link: re.Match[str]) -> str:
        words, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return link.group()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        on_site = site_path(wanted)
        if on_site is None:
            return words
        page = site_path(here)
        assert page is not None
        relative = os.path.relpath(on_site, posixpath.dirname(page) or ".").replace(os.sep, "/")
        return f"[{words}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(replace, text)
