"use strict";
// The list beside a record: filters above, then as many rows as fit on the screen, however many there are.

const List = (() => {
  const ROW = 60; // pixels, as in site.css
  const SPARE = 6;
  const PAUSE = 90; // milliseconds after a letter

  // kind: as in Data. fields: filters {key, label, options, test(line, value)}. row(line, number): the row's content.
  // place(line, params): where a row leads to.
  const make = ({ kind, noun, fields, row, place }) => {
    const { el } = Dom;
    const keys = [...fields.map((field) => field.key), "q"];
    const search = el("input", { type: "search", placeholder: "Search all text  ( / )", "aria-label": `Search: ${noun}`, spellcheck: "false" });
    const filters = el("div.filters");
    const count = el("p.count", { role: "status" });
    const clear = el("a.clear", { href: Route.href(kind) }, "Clear");
    const space = el("div.space", { role: "list" });
    const scroller = el("div.rows", { tabindex: "-1" }, space);
    const node = el("aside.list", { "aria-label": `${noun} list` }, el("div.controls", {}, search, filters, el("div.summary", {}, count, clear)), scroller);
    const shown = new Map();
    let lines = [], rows = [], params = new Map(), current = -1, asked = "", timer = 0, ticket = 0;

    const set = (changes) => {
      const route = Route.parse(location.hash);
      const parts = route.view === "trajectory" ? [route.id] : route.view === "episode" ? [route.model, route.id] : [];
      Route.replace(Route.href(route.view, parts, Route.changed(route.params, changes)));
    };

    const ask = () => {
      if (!timer) return;
      clearTimeout(timer);
      timer = 0;
      set({ q: search.value });
    };
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(ask, PAUSE);
    });
    search.addEventListener("blur", ask);

    const controls = () => Dom.keepFocus(filters, () => filters.replaceChildren(...fields.map(({ key, label, options }) =>
      Dom.select(label, [["", "any"], ...options], params.get(key)?.[0] ?? "", (value) => set({ [key]: value })))));

    const filter = async () => {
      const mine = ++ticket;
      const query = params.get("q")?.join(",") ?? "";
      const tests = fields.filter(({ key }) => params.has(key)).map(({ key, test }) => [test, params.get(key)[0]]);
      const found = await Data.search(kind, query);
      if (mine !== ticket) return;
      const kept = [];
      for (let i = 0; i < lines.length; i++) {
        if ((!found || found[i]) && tests.every(([test, value]) => test(lines[i], value))) kept.push(i);
      }
      // An id that holds what was typed stands before a text that holds its words.
      const typed = query.trim();
      rows = typed ? [...kept.filter((i) => lines[i][0].includes(typed)), ...kept.filter((i) => !lines[i][0].includes(typed))] : kept;
      count.textContent = rows.length === lines.length ? Dom.plural(rows.length, noun) : `${rows.length.toLocaleString("en")} of ${Dom.plural(lines.length, noun)}`;
      clear.hidden = !(tests.length || query);
      space.style.height = `${rows.length * ROW}px`;
      for (const old of shown.values()) old.remove();
      shown.clear();
      if (!reveal()) scroller.scrollTop = 0;
      draw();
    };

    const draw = () => {
      const from = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
      const to = Math.min(rows.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + SPARE);
      for (const [at, old] of shown) if (at < from || at >= to) { old.remove(); shown.delete(at); }
      for (let at = from; at < to; at++) {
        if (shown.has(at)) continue;
        const line = lines[rows[at]];
        const link = el("a.row", { href: place(line, params), "aria-current": rows[at] === current && "true" }, row(line, rows[at]));
        const item = el("div.item", { role: "listitem", "aria-setsize": rows.length, "aria-posinset": at + 1 }, link);
        item.style.top = `${at * ROW}px`;
        shown.set(at, item);
        space.append(item);
      }
    };

    // Brings the current row into sight; whether there is one.
    const reveal = () => {
      const at = rows.indexOf(current);
      if (at < 0) return false;
      const top = at * ROW, height = scroller.clientHeight;
      if (top < scroller.scrollTop || top + ROW > scroller.scrollTop + height) scroller.scrollTop = top - (height - ROW) / 2;
      return true;
    };

    scroller.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    window.addEventListener("resize", () => requestAnimationFrame(draw));

    // Shows the route's filters and marks the row that is open.
    const show = async (route, number) => {
      lines = (await Data.index(kind)).lines;
      const next = Route.only(route.params, keys);
      const same = JSON.stringify([...next]);
      current = number;
      params = route.params;
      clear.href = Route.href(kind);
      if (same !== asked) {
        asked = same;
        controls();
        if (document.activeElement !== search) search.value = next.get("q")?.join(",") ?? "";
        await filter();
      } else {
        for (const old of shown.values()) old.remove();
        shown.clear();
        reveal();
        draw();
      }
    };

    // Where the next (1) or previous (-1) record lies.
    const beside = (way) => {
      if (!rows.length) return null;
      const at = rows.indexOf(current);
      const next = at < 0 ? (way > 0 ? 0 : rows.length - 1) : at + way;
      return rows[next] === undefined ? null : place(lines[rows[next]], params);
    };

    return { node, show, beside, search };
  };

  return { make };
})();
