"""A picture as SVG inside an HTML page: recolourable, small, and without what a strict content policy forbids.

matplotlib writes a style attribute on every element. Here each style becomes a class of one style sheet, and each
colour of the palette a CSS variable, so that the page can be light or dark and forbid inline styles.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib

from sgdwalk.drawing import COLOURS, Picture

_VARIABLE = {value: f"var(--{name})" for name, value in COLOURS.items()}
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"


class StyleSheet:
    """The styles of all pictures of a page, each once."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class that stands for a style attribute as matplotlib writes it."""
        kept = [part.strip() for part in style.split(";") if not part.strip().startswith("font-family")]
        css = re.sub(r"#[0-9a-f]{6}", lambda found: _VARIABLE[found[0]], ";".join(kept))
        return self._classes.setdefault(css, f"s{len(self._classes)}")

    @property
    def css(self) -> str:
        """One rule a class."""
        return "\n".join(f".{name}{{{css}}}" for css, name in self._classes.items())


def inline_svg(picture: Picture, identifier: str, styles: StyleSheet, css_class: str = "") -> str:
    """The picture as an ``<svg>`` element; what a reader should know of it must stand beside it.

    Args:
        picture: the figure.
        identifier: unique in the page, a prefix of the ids inside.
        styles: gets the styles that the picture needs.
        css_class: of the ``<svg>`` element.
    """
    file = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sgdwalk", "path.simplify": True}):
        picture.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    svg = ElementTree.Element("svg", {"viewBox": root.get("viewBox", ""), "aria-hidden": "true", "focusable": "false"})
    if css_class:
        svg.set("class", css_class)
    for child in root:
        _append(svg, child, identifier, styles)
    return ElementTree.tostring(svg, encoding="unicode")


def _append(parent: ElementTree.Element, element: ElementTree.Element, prefix: str, styles: StyleSheet) -> None:
    """Append the element's leaner twin; groups that only bear a name are left out, their children kept."""
    tag = element.tag.rpartition("}")[2]
    if tag in ("style", "metadata") or element.get("style") == "fill: none":
        return
    attributes = {_name(key): _value(key, value, tag, prefix) for key, value in element.attrib.items()}
    if tag == "g":
        attributes.pop("id", None)
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "style" in attributes:
        attributes["class"] = styles.name(attributes.pop("style"))
    if tag == "g" and not attributes:
        twin = parent
    else:
        twin = ElementTree.SubElement(parent, tag, attributes)
        twin.text = element.text.strip() if element.text and tag == "text" else None
    for child in element:
        _append(twin, child, prefix, styles)


def _name(key: str) -> str:
    return "href" if key == _XLINK_HREF else key


def _value(key: str, value: str, tag: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key in (_XLINK_HREF, "clip-path"):
        return value.replace("#", f"#{prefix}-")
    if key == "d":
        return _short_path(value)
    if key in ("x", "y", "width", "height"):
        return f"{float(value):.2f}".rstrip("0").rstrip(".")
    return value


def _short_path(path: str) -> str:
    """The same path to 1/100 unit; straight lines that follow each other need no letter."""
    path = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), path)
    path = re.sub(r"\s+", " ", path).strip()
    return path if re.search("[CQ]", path) else path.replace(" L ", " ")


def geometry(picture: Picture) -> list[list[float]]:
    """For each panel over steps, in the units of the SVG: left, right, top, bottom, and the steps at left and right."""
    width, height = 72 * picture.get_figwidth(), 72 * picture.get_figheight()
    panels = []
    for ax in picture.step_axes:
        box = ax.get_position()
        edges = (box.x0 * width, box.x1 * width, (1 - box.y1) * height, (1 - box.y0) * height)
        panels.append([round(float(number), 3) for number in (*edges, *ax.get_xlim())])
    return panels
