"use strict";
// One trajectory: its steps with every selector's scores, and two selectors side by side.

const TrajectoryView = (() => {
  const { el, number, plural } = Dom;
  const STEPS = [["", "all"], ["chosen", "chosen"], ["differ", "that differ"]];

  const names = () => meta.selectors.map((selector) => selector.name);
  let meta = null;

  const start = (found) => { meta = found; };

  // Numbers of the one or two selectors in the link; else the critical one or the first.
  const compared = (route) => {
    const asked = (route.params.get("selectors") ?? []).map((name) => names().indexOf(name)).filter((i) => i >= 0);
    if (asked.length) return asked.slice(0, 2);
    return names().length ? [Math.max(0, names().indexOf(meta.critical))] : [];
  };

  const show = async (route, row, line, change) => {
    const record = await Data.record("trajectories", row);
    const words = Data.marks(route.params.get("q")?.join(",") ?? "");
    const pair = compared(route);
    const sides = pair.map((i) => ({ number: i, name: names()[i], selection: record.selections[i], chosen: new Set(record.selections[i]?.chosen ?? []) }));
    const { opening, steps, closing } = Turns.group(record.turns);
    const gold = new Map((record.gold ?? []).map(([step, rank, category]) => [step, { rank, category }]));
    const [id, env, outcome, count] = line;
    const which = Route.first(route, "steps");
    const kept = steps.filter(({ index }) => {
      const marks = sides.map((side) => side.chosen.has(index));
      return which === "chosen" ? marks.some(Boolean) : which === "differ" && sides.length > 1 ? marks[0] !== marks[1] : true;
    });
    return el("article.record", {},
      el("header", {},
        el("h1", { tabindex: "-1" }, id),
        el("p.facts", {},
          Turns.chip(meta.envs[env]), Turns.chip(meta.outcomes.trajectories[outcome], meta.outcomes.trajectories[outcome]),
          el("span", {}, plural(count, "step")), record.reward === null ? null : el("span", {}, `reward ${number(record.reward)}`))),
      sides.length ? choosers(pair, which, change) : el("p.note", {}, "No selection of steps belongs to this report."),
      sides.length ? el("div.accounts", {}, sides.map((side, i) => account(side, i, count, words))) : null,
      sides.length > 1 ? agreement(sides, count) : null,
      matrix(record, steps, gold, sides),
      sides.length ? legend(sides) : null,
      Turns.opening(opening, words),
      el("div.steps", {}, kept.map((step) => card(step, record, gold.get(step.index), sides, words))),
      kept.length < steps.length ? el("p.note", {}, `${plural(steps.length - kept.length, "step")} left out by the choice of steps above.`) : null,
      Turns.closing(closing, words));
  };

  const choosers = (pair, which, change) => {
    const all = names().map((name, i) => [String(i), name]);
    const put = (a, b) => change({ selectors: [a, b].filter((i) => i !== "" && i !== undefined).map((i) => names()[i]) });
    return el("div.choosers", {},
      Dom.select("Selector A", all, String(pair[0]), (value) => put(value, pair[1])),
      Dom.select("Selector B", [["", "none"], ...all.filter(([i]) => i !== String(pair[0]))], String(pair[1] ?? ""), (value) => put(pair[0], value)),
      Dom.select("Steps", pair.length > 1 ? STEPS : STEPS.slice(0, 2), which, (value) => change({ steps: value })));
  };

  // What a selector says of the whole trajectory.
  const account = ({ name, selection }, side, count, words) => {
    const title = el("h2", {}, el(`span.key.${"ab"[side]}`, {}, "AB"[side]), name);
    if (!selection) return el("section.account", {}, title, el("p.note", {}, "No selection for this trajectory."));
    if (selection.error) return el("section.account", {}, title, el("p.error", {}, Dom.text(selection.error, words)));
    const chosen = selection.chosen ?? [];
    return el("section.account", {}, title,
      el("p", {}, `${chosen.length} of ${plural(count, "step")}`, chosen.length ? `: ${chosen.join(", ")}` : ""),
      selection.model ? el("p.note", {}, "by ", el("code", {}, selection.model)) : null,
      selection.plan ? el("div.said", {}, el("h3", {}, "Plan"), Dom.text(selection.plan, words)) : null,
      selection.reason ? el("div.said", {}, el("h3", {}, "Reason"), Dom.text(selection.reason, words)) : null);
  };

  const agreement = ([a, b], count) => {
    const both = [...a.chosen].filter((step) => b.chosen.has(step)).length;
    const neither = count - a.chosen.size - b.chosen.size + both;
    return el("p.agreement", {}, el("b", {}, `Both choose ${both}`), ` · only ${a.name} ${a.chosen.size - both} · only ${b.name} ${b.chosen.size - both} · neither ${neither}`);
  };

  // Every selector's choice over the steps; the darker the ground, the higher the score within the trajectory.
  const matrix = (record, steps, gold, sides) => {
    if (!names().length && !gold.size) return null;
    const head = el("tr", {}, el("th", { scope: "col" }, "step"), steps.map(({ index }) => {
      const to = el("button", { type: "button", title: `Go to step ${index}` }, String(index));
      to.addEventListener("click", () => jump(index));
      return el("th", { scope: "col" }, to);
    }));
    const marks = gold.size ? el("tr", {}, el("th", { scope: "row" }, "expert's marks"), steps.map(({ index }) => {
      const mark = gold.get(index);
      return el("td", { title: mark && `rank ${mark.rank}, ${mark.category}` }, mark ? String(mark.rank) : "");
    })) : null;
    const rows = names().map((name, i) => {
      const selection = record.selections[i];
      const side = sides.findIndex((s) => s.number === i);
      const heat = shade(selection?.scores ?? []);
      return el(`tr${side < 0 ? "" : `.${"ab"[side]}`}`, {}, el("th", { scope: "row" }, name), steps.map(({ index }) => {
        const score = selection?.scores?.[index - 1];
        const cell = el("td", { title: score === undefined ? null : `step ${index}: score ${number(score)}` },
          selection?.chosen?.includes(index) ? el("span.dot", { role: "img", "aria-label": "chosen" }) : "");
        if (heat[index - 1]) cell.style.setProperty("--heat", `${heat[index - 1]}%`);
        return cell;
      }));
    });
    return el("div.scroll", {}, el("table.matrix", {}, el("thead", {}, head), el("tbody", {}, marks, rows)));
  };

  const shade = (scores) => {
    const known = scores.filter((score) => score !== null);
    const low = Math.min(...known), span = Math.max(...known) - low;
    return scores.map((score) => score === null || !span ? 0 : Math.round(40 * (score - low) / span));
  };

  const legend = (sides) => el("p.legend", {}, "Coloured: thought, action and end of turn carry loss when training on ",
    sides.map(({ name }, i) => [i ? ", on " : "", el(`span.swatch.loss-${"ab"[i]}`, {}, name)]),
    sides.length > 1 ? [", or on ", el("span.swatch.loss-both", {}, "both")] : "", ".");

  const card = (step, record, mark, sides, words) => {
    const on = sides.map((side) => side.chosen.has(step.index));
    const tint = on[0] && on[1] ? "loss-both" : on[0] ? "loss-a" : on[1] ? "loss-b" : "";
    return el(`section.step${tint ? ".chosen" : ""}`, { id: `step-${step.index}`, tabindex: "-1", "aria-label": `Step ${step.index}` },
      el("header", {}, el("h3", {}, `Step ${step.index}`),
        sides.map((side, i) => on[i] ? Turns.chip(`${"AB"[i]} ${side.name}`, "ab"[i]) : null),
        names().map((name, i) => record.selections[i]?.chosen?.includes(step.index) && !sides.some((s) => s.number === i) ? Turns.chip(name) : null),
        mark ? Turns.chip(`expert: ${mark.category}, rank ${mark.rank}`, "gold") : null),
      el(`div.lanes${sides.length > 1 ? ".two" : ""}`, {},
        sides.length > 1 ? lane(sides[0], step.index, 0) : null,
        el("div.body", {}, step.before.map((turn) => Turns.message(turn, words)), Turns.reply(step, words, tint)),
        sides.length > 1 ? lane(sides[1], step.index, 1) : null),
      scores(record, step.index));
  };

  // One selector's word on a step, beside it.
  const lane = ({ name, selection, chosen }, index, side) => {
    const score = selection?.scores?.[index - 1];
    return el(`div.lane.${"ab"[side]}${chosen.has(index) ? ".on" : ""}`, {},
      el("b", {}, name), el("span", {}, !selection || selection.error ? "no selection" : chosen.has(index) ? "chosen" : "not chosen"),
      score === undefined ? null : el("span", {}, `score ${number(score)}`), el("span", {}, category(selection, index)));
  };

  const category = (selection, index) => selection?.categories?.find(([step]) => step === index)?.[1] ?? "";

  const scores = (record, index) => {
    const items = names().map((name, i) => {
      const selection = record.selections[i];
      const score = selection?.scores?.[index - 1];
      const said = [score === undefined ? "" : number(score), category(selection, index)].filter(Boolean);
      return said.length ? el(`li${selection.chosen?.includes(index) ? ".chosen" : ""}`, {}, el("span", {}, name), ` ${said.join(" · ")}`) : null;
    }).filter(Boolean);
    return items.length ? el("ul.scores", { "aria-label": "Scores by selector" }, items) : null;
  };

  const jump = (index) => {
    const target = document.getElementById(`step-${index}`);
    if (!target) return;
    target.scrollIntoView({ block: "start" });
    target.focus({ preventScroll: true });
  };

  return { start, show };
})();
