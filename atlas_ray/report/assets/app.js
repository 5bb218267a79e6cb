"use strict";
// What stands where: the link decides the view; keys and buttons change the link.

const App = (() => {
  const { el } = Dom;
  const STATIC = ["overview", "tables", "figures"];
  const byId = (id) => document.getElementById(id);
  const explorer = byId("explorer");
  const help = byId("help");
  const title = document.title;
  let meta = null, lists = {}, open = null, ticket = 0;

  const options = (names) => names.map((name, i) => [name, Dom.words(name)]);

  const make = () => {
    const selectors = meta.selectors.map(({ name }) => name);
    const place = {
      trajectories: (line, params) => Route.href("trajectory", [line[0]], params),
      episodes: (line, params) => Route.href("episode", [meta.models[line[3]], line[0]], params),
    };
    const env = { key: "env", label: "Environment", options: meta.envs.map((name) => [name, name]), test: (line, value) => meta.envs[line[1]] === value };
    const outcome = (kind) => ({ key: "outcome", label: "Outcome", options: options(meta.outcomes[kind]), test: (line, value) => meta.outcomes[kind][line[2]] === value });
    const badge = (kind, line) => el(`span.badge.${meta.outcomes[kind][line[2]].replaceAll(" ", "-")}`, {}, meta.outcomes[kind][line[2]]);
    lists = {
      trajectories: List.make({
        kind: "trajectories", noun: "trajectory", place: place.trajectories,
        fields: [env, outcome("trajectories"), {
          key: "selector", label: "Chosen by", options: selectors.map((name) => [name, name]),
          test: (line, value) => (line[4][selectors.indexOf(value)] ?? 0) > 0,
        }],
        row: (line) => [el("span.id", {}, line[0]), badge("trajectories", line), el("span.preview", {}, line[5]),
          el("span.small", { title: selectors.map((name, i) => `${name}: ${line[4][i] ?? "–"}`).join("\n") }, chosen(line))],
      }),
      episodes: List.make({
        kind: "episodes", noun: "episode", place: place.episodes,
        fields: [env, outcome("episodes"),
          { key: "model", label: "Model", options: meta.models.map((name) => [name, name]), test: (line, value) => meta.models[line[3]] === value },
          { key: "stop", label: "Stopped by", options: options(meta.stops), test: (line, value) => meta.stops[line[4]] === value }],
        row: (line) => [el("span.id", {}, line[0]), badge("episodes", line), el("span.preview", {}, line[7]),
          el("span.small", {}, `${meta.models[line[3]]} · ${line[5]}`)],
      }),
    };
  };

  // Steps, and how many of them the selector that is shown first chose.
  const chosen = (line) => {
    const main = Math.max(0, meta.selectors.findIndex(({ name }) => name === meta.critical));
    const count = line[4][main];
    return count >= 0 && count !== null && count !== undefined ? `${count}/${line[3]}` : String(line[3]);
  };

  const kindOf = (view) => ({ trajectories: "trajectories", trajectory: "trajectories", episodes: "episodes", episode: "episodes" })[view];

  const show = async () => {
    const mine = ++ticket;
    const route = Route.parse(location.hash);
    const kind = kindOf(route.view);
    for (const view of STATIC) byId(view).hidden = view !== route.view;
    explorer.hidden = !kind;
    document.title = title;
    for (const link of document.querySelectorAll(".views a")) {
      const on = link.dataset.view === (kind ?? route.view);
      if (on) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    if (!kind) {
      open = null;
      const target = route.anchor && byId(`${route.view}-${route.anchor}`);
      if (target) target.scrollIntoView(); else window.scrollTo(0, 0);
      return;
    }
    try {
      await showRecord(route, kind, mine);
    } catch (error) {
      fill(el("p.error", {}, error.message));
    }
  };

  const showRecord = async (route, kind, mine) => {
    const list = lists[kind];
    const { lines, byId: rowsOf } = await Data.index(kind);
    if (mine !== ticket) return;
    if (explorer.firstChild !== list.node) explorer.firstChild.replaceWith(list.node);
    const single = route.view === "trajectory" || route.view === "episode";
    explorer.classList.toggle("single", single);
    const rows = single ? rowsOf.get(route.id) ?? [] : [];
    const row = route.view === "episode" ? rows.find((i) => meta.models[lines[i][3]] === route.model) : rows[0];
    await list.show(route, row ?? -1);
    if (mine !== ticket) return;
    if (!single) return fill(lines.length ? el("p.hint", {}, "Choose one from the list, or press ", el("kbd", {}, "j"), ".") : el("p.hint", {}, "This report holds none."));
    if (row === undefined) return fill(el("p.error", {}, `This report holds no ${route.view} ${route.id}.`));
    const parts = route.view === "episode" ? [route.model, route.id] : [route.id];
    const change = (changes) => Route.replace(Route.href(route.view, parts, Route.changed(Route.parse(location.hash).params, changes)));
    const node = route.view === "trajectory"
      ? await TrajectoryView.show(route, row, lines[row], change)
      : await EpisodeView.show(route, row, lines[row], rows.filter((i) => i !== row).map((i) => ({ row: i, line: lines[i] })), change);
    if (mine !== ticket) return;
    const here = `${route.view} ${parts.join(" ")}`;
    const kept = here === open ? detail().scrollTop : 0;
    const fresh = here !== open;
    Dom.keepFocus(detail(), () => fill(el("a.back", { href: Route.href(kind, [], route.params) }, "← all"), node));
    detail().scrollTop = kept;
    // So that the keys of the browser scroll what was opened.
    if (fresh && document.activeElement === document.body) detail().focus({ preventScroll: true });
    open = here;
    document.title = `${route.id} · ${byId("name").textContent}`;
  };

  const detail = () => byId("detail");
  const fill = (...nodes) => { open = null; detail().replaceChildren(...nodes); };

  const theme = (() => {
    const root = document.documentElement;
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    try { const kept = localStorage.getItem("atlas-theme"); if (kept === "dark" || kept === "light") root.dataset.theme = kept; } catch { /* not kept */ }
    return () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("atlas-theme", root.dataset.theme); } catch { /* not kept */ }
    };
  })();

  const go = (place) => { if (place) location.hash = place; };
  const list = () => lists[kindOf(Route.parse(location.hash).view)];

  // To the next (1) or previous (-1) step on the screen, or to the next that a compared selector chose.
  const step = (way, which = ".step") => {
    const top = detail().getBoundingClientRect().top;
    const places = [...detail().querySelectorAll(`${which}[id]`)];
    const past = places.filter((node) => way > 0 ? node.getBoundingClientRect().top > top + 24 : node.getBoundingClientRect().top < top - 8);
    const target = way > 0 ? past[0] : past.at(-1);
    if (target) { target.scrollIntoView({ block: "start" }); target.focus({ preventScroll: true }); }
  };

  const close = () => {
    const route = Route.parse(location.hash);
    const kind = kindOf(route.view);
    if (help.open) help.close();
    else if (kind && kind !== route.view) go(Route.href(kind, [], route.params));
  };

  const KEYS = {
    j: () => go(list()?.beside(1)), k: () => go(list()?.beside(-1)),
    ArrowRight: () => go(list()?.beside(1)), ArrowLeft: () => go(list()?.beside(-1)),
    n: () => step(1), p: () => step(-1), c: () => step(1, ".step.chosen"), C: () => step(-1, ".step.chosen"),
    "/": () => { if (!list()) go(Route.href("trajectories")); setTimeout(() => { list()?.search.focus(); list()?.search.select(); }); },
    t: theme, "?": () => help.open ? help.close() : help.showModal(), Escape: close,
    1: () => go("#/overview"), 2: () => go("#/tables"), 3: () => go("#/figures"), 4: () => go("#/trajectories"), 5: () => go("#/episodes"),
  };

  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key.startsWith("Arrow") && (!list() || event.target.closest(".scroll"))) return;
    const act = KEYS[event.key];
    if (!act || (help.open && !["?", "Escape"].includes(event.key))) return;
    event.preventDefault();
    act();
  };

  meta = Data.start();
  if (meta) {
    TrajectoryView.start(meta);
    EpisodeView.start(meta);
    make();
    byId("theme").addEventListener("click", theme);
    byId("keys").addEventListener("click", () => help.showModal());
    byId("close").addEventListener("click", () => help.close());
    window.addEventListener("keydown", pressed);
    window.addEventListener("hashchange", show);
    document.documentElement.classList.add("live");
    show();
  }

  return { show };
})();
