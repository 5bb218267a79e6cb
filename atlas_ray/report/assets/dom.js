"use strict";
// Elements and words. Whatever environments and models said becomes a text node and is never read as HTML.

const Dom = (() => {
  // el("p.note", { title: "..." }, "text", child, ...): children are nodes, strings, or null for nothing.
  const el = (what, attributes = {}, ...children) => {
    const [tag, ...classes] = what.split(".");
    const node = document.createElement(tag);
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") node.addEventListener("click", value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };

  const LONG = 900;

  // Text with the words of the search marked; what is long is folded.
  const text = (content, marks = []) => {
    const node = el("pre.text");
    const fill = (shown) => node.replaceChildren(...marked(shown, marks));
    if (content.length <= LONG * 1.25) {
      fill(content);
      return node;
    }
    const rest = content.length - LONG;
    const more = el("button.more", { type: "button" }, `Show ${rest.toLocaleString("en")} more characters`);
    more.addEventListener("click", () => { fill(content); node.focus(); });
    node.tabIndex = -1;
    fill(content.slice(0, LONG) + "…");
    node.append(more);
    return node;
  };

  const marked = (content, marks) => {
    if (!marks.length) return [content];
    const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(?:${marks.join("|")})`, "giu");
    const parts = [];
    let from = 0;
    for (const found of content.matchAll(pattern)) {
      parts.push(content.slice(from, found.index), el("mark", {}, found[0]));
      from = found.index + found[0].length;
    }
    parts.push(content.slice(from));
    return parts;
  };

  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const shown = size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
    return shown.replace("-", "−");
  };

  const plural = (count, noun) => `${count.toLocaleString("en")} ${count === 1 ? noun : noun.endsWith("y") ? `${noun.slice(0, -1)}ies` : `${noun}s`}`;

  const words = (name) => name.replaceAll("_", " ");

  // A labelled <select>; options are [value, label] pairs.
  const select = (label, options, value, changed) => {
    const node = el("select", { "aria-label": label }, options.map(([key, shown]) => el("option", { value: key, selected: key === value }, shown)));
    node.addEventListener("change", () => changed(node.value));
    return el("label.field", {}, el("span", {}, label), node);
  };

  // Draws anew by `fill` without taking the focus from a <select> within `place`.
  const keepFocus = (place, fill) => {
    const label = place.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    fill();
    if (label) place.querySelector(`select[aria-label="${label}"]`)?.focus({ preventScroll: true });
  };

  return { el, keepFocus, text, number, plural, words, select };
})();
