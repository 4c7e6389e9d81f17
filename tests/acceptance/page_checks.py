"""What is wrong with a page as a browser shows it: cut texts, messages out of view or not read out, axe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

# Elements with a text of their own that shows less than all of it: of a block its own box, of a field its
# value or placeholder, and of anything a clipping ancestor. A prompt of more than three lines and fields of
# several lines scroll or end in dots on purpose.
CUT = """() => {
    const found = [];
    const own = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const name = (one) => `${one.tagName.toLowerCase()}${one.id ? "#" + one.id : ""}.${one.className}`;
    const canvas = document.createElement("canvas").getContext("2d");
    const wide = (one, text) => {
        const style = getComputedStyle(one);
        canvas.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
        const inside = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
        const arrow = one.tagName === "SELECT" ? 18 : 0;
        return canvas.measureText(text).width + inside + arrow > one.clientWidth + 1;
    };
    for (const one of document.querySelectorAll("body *")) {
        if (!one.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
        if (one.closest(".visually-hidden, [aria-hidden=true], svg, .skip")) continue;
        if (["OPTION", "TEXTAREA"].includes(one.tagName) || ["checkbox", "file"].includes(one.type)) continue;
        if (one.tagName === "SELECT") {
            const text = one.selectedOptions[0]?.textContent ?? "";
            if (wide(one, text)) found.push(`${name(one)}: "${text}" is wider than the field`);
            continue;
        }
        if (one.tagName === "INPUT") {
            const text = one.value || one.placeholder;
            const shown = one.type !== "password" && text;
            if (shown && wide(one, text)) found.push(`${one.name}: "${text}" is wider than the field`);
            continue;
        }
        if (!own(one)) continue;
        const style = getComputedStyle(one);
        const clamped = style.webkitLineClamp !== "none";
        if (style.display !== "inline" && !clamped) {
            const { scrollWidth, clientWidth, scrollHeight, clientHeight } = one;
            if (scrollWidth > clientWidth + 1) {
                found.push(`${name(one)}: ${scrollWidth} px in ${clientWidth}`);
            }
            if (scrollHeight > clientHeight + 3) {
                found.push(`${name(one)}: ${scrollHeight} px high in ${clientHeight}`);
            }
        }
        const range = document.createRange();
        range.selectNodeContents(one);
        const box = range.getBoundingClientRect();
        for (let outer = one.parentElement; outer && outer !== document.body; outer = outer.parentElement) {
            const { overflowX, overflowY } = getComputedStyle(outer);
            const rect = outer.getBoundingClientRect();
            const beyond = box.left < rect.left - 1 || box.right > rect.right + 1;
            const below = box.top < rect.top - 1 || box.bottom > rect.bottom + 1;
            const cut = (overflowX !== "visible" && beyond) || (overflowY === "hidden" && below);
            if (cut) { found.push(`${name(one)}: cut by ${name(outer)}`); break; }
        }
    }
    return found;
}"""
IN_VIEW = """name => {
    const element = [...document.querySelectorAll(name)].find((one) => one.checkVisibility());
    const { left, top, width, height, bottom, right } = element.getBoundingClientRect();
    const seen = document.elementFromPoint(left + width / 2, top + height / 2);
    return top >= 0 && bottom <= innerHeight && left >= 0 && right <= innerWidth && width > 0
        && (element === seen || element.contains(seen));
}"""
READ_OUT = """name => Boolean(document.querySelector(name).closest(
    "[role=alert], [role=status], [aria-live=polite], [aria-live=assertive]"))"""


@dataclass(frozen=True)
class Look:
    """What to look for: the selector of what the page says, whether it is a refusal, the window's width."""

    says: str
    refusal: bool
    width: int


def faults_of(page: Any, look: Look) -> list[str]:
    """What is wrong with the page as it is now, one sentence each."""
    faults = [f"cut: {each}" for each in page.evaluate(CUT)]
    if not page.evaluate(IN_VIEW, look.says):
        faults.append(f"{look.says} is not in view")
    if look.refusal and not page.evaluate(READ_OUT, look.says):
        faults.append(f"{look.says} is not read out")
    if (wide := page.evaluate("document.documentElement.scrollWidth")) > look.width:
        faults.append(f"the page scrolls sideways: {wide} px")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    for one in axe.Axe().run(page).response["violations"]:
        faults.append(f"axe {one['id']} ({one['impact']}): {one['nodes'][0]['html'][:160]}")
    return faults
