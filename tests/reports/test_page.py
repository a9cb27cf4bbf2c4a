"""Pages: the HTML to the letter, and texts that stay what they are."""

from hrpo.reports.page import Section, to_html, to_markdown
from hrpo.reports.tables import Table

HOSTILE = "</td><script>alert(1)</script>"


def sections(folder):
    picture = folder / "a b.png"
    picture.write_bytes(b"\x89PNG")
    return [
        Section("Curves", "Note & more", picture=picture, alt='of "runs"'),
        Section("Numbers", table=Table(["", "a<b"], [["x", "two\nlines"], [HOSTILE, "'1'"]])),
        Section("All", text="a: 1\nb: '<i>'\n"),
    ]


def test_html(tmp_path):
    page = to_html("One & two", sections(tmp_path))
    head, body = page.split("</style></head><body>")
    assert head.startswith(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width"><title>One &amp; two</title><style>\n:root {'
    )
    assert body == (
        "<h1>One &amp; two</h1>"
        "<h2>Curves</h2><p>Note &amp; more</p>"
        '<img alt="of &#34;runs&#34;" src="data:image/png;base64,iVBORw==">'
        "<h2>Numbers</h2><p></p>"
        '<div class="wide"><table><thead><tr><th scope=col></th><th scope=col>a&lt;b</th></tr></thead><tbody>'
        "<tr><td>x</td><td><pre>two\nlines</pre></td></tr>"
        "<tr><td>&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;</td><td>&#39;1&#39;</td></tr>"
        "</tbody></table></div>"
        "<details><summary>All</summary><pre>a: 1\nb: &#39;&lt;i&gt;&#39;\n</pre></details>"
        "</body></html>\n"
    )


def test_markdown(tmp_path):
    assert to_markdown("One & two", sections(tmp_path)) == (
        "# One & two\n\n## Curves\n\nNote & more\n\n![curves](a%20b.png)\n\n"
        "## Numbers\n\n\n\n|  | a&lt;b |\n| --- | --- |\n| x | two<br>lines |\n"
        "| &lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; | '1' |\n\n"
        "## All\n\n\n\n```yaml\na: 1\nb: '<i>'\n```\n"
    )
