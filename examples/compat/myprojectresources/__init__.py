"""The stylesheets of the full circle's project, by the names of their files, with and without `.xsl`."""

from pathlib import Path

__all__ = ["my_xsl_files"]

my_xsl_files = {
    name: file.read_text("utf-8")
    for file in sorted(Path(__file__).parent.glob("*.xsl"))
    for name in (file.name, file.stem)
}
