"use strict";
// The place in the report is the link: #/view/part?key=value. Whoever opens it sees the same.

const Route = (() => {
  const VIEWS = ["overview", "tables", "figures", "trajectories", "episodes", "trajectory", "episode"];

  const decode = (part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  };

  const parse = (hash) => {
    const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
    const [view, ...rest] = path.split("/");
    const params = new Map();
    for (const pair of query.split("&")) {
      const [key, value = ""] = pair.split(/=(.*)/s);
      if (key && value) params.set(decode(key), value.split(",").map(decode));
    }
    // An id may hold slashes that a person typed as they are; a model's name is always one part.
    if (view === "trajectory") return { view, id: decode(rest.join("/")), params };
    if (view === "episode") return { view, model: decode(rest[0] ?? ""), id: decode(rest.slice(1).join("/")), params };
    return { view: VIEWS.includes(view) ? view : "overview", anchor: decode(rest.join("/")), params };
  };

  const href = (view, parts = [], params = new Map()) => {
    const query = [...params]
      .filter(([, values]) => values.some((value) => value !== ""))
      .map(([key, values]) => `${encodeURIComponent(key)}=${values.map(encodeURIComponent).join(",")}`);
    return `#/${[view, ...parts.map(encodeURIComponent)].join("/")}${query.length ? `?${query.join("&")}` : ""}`;
  };

  const first = (route, key) => route.params.get(key)?.[0] ?? "";

  // A copy of the parameters with some set; null or "" removes one.
  const changed = (params, changes) => {
    const copy = new Map(params);
    for (const [key, value] of Object.entries(changes)) {
      const values = Array.isArray(value) ? value : [value ?? ""];
      if (values.some((v) => v !== "")) copy.set(key, values); else copy.delete(key);
    }
    return copy;
  };

  const only = (params, keys) => new Map([...params].filter(([key]) => keys.includes(key)));

  // Filters replace the place, so that "back" leaves the view and not the last letter typed.
  const replace = (place) => {
    history.replaceState(null, "", place);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  };

  return { parse, href, first, changed, only, replace };
})();
