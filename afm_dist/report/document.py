"""The frame that all pages have in common: one self-contained file, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from afm_dist.report.elements import Html, join, plain, section
from afm_dist.report.style import CSS

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
<header>
$header
<nav aria-label="Sections">$links</nav>
</header>
$sections
</main>
</body>
</html>
""")


def document(title: str, header: Html, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page.

    Args:
        title: Of the window.
        header: What stands above the links to the sections.
        sections: Anchor, heading and content of each; those without content are left out.
    """
    shown = [(anchor, heading, content) for anchor, heading, content in sections if content]
    return PAGE.substitute(
        title=plain(title),
        css=CSS,
        header=header,
        links=join((Html(f'<a href="#{anchor}">{plain(heading)}</a>') for anchor, heading, _ in shown), " "),
        sections=join(section(*parts) for parts in shown),
    )
