"use strict";
// One episode, and beside it another model's on the same task.

const EpisodeView = (() => {
  const { el, number, plural } = Dom;
  let meta = null;

  const start = (found) => { meta = found; };

  // line: as records.py writes it. rivals: lines and rows of the same task by other models.
  const show = async (route, row, line, rivals, change) => {
    const words = Data.marks(route.params.get("q")?.join(",") ?? "");
    const asked = Route.first(route, "with");
    const other = rivals.find((rival) => meta.models[rival.line[3]] === asked);
    const sides = await Promise.all([{ row, line }, other].filter(Boolean).map(async (side) => {
      const record = await Data.record("episodes", side.row);
      return { ...side, record, ...Turns.group(record.turns) };
    }));
    const names = rivals.map((rival) => meta.models[rival.line[3]]);
    return el("article.record.episode", {},
      el("header", {}, el("h1", { tabindex: "-1" }, line[0]),
        el("p.facts", {}, Turns.chip(meta.envs[line[1]]),
          sides[0].record.start ? el("span", {}, `after ${plural(sides[0].record.start, "expert step")}`) : null,
          sides[0].record.sample ? el("span", {}, `sample ${sides[0].record.sample}`) : null)),
      el("div.choosers", {},
        names.length
          ? Dom.select("Beside it", [["", "no other model"], ...names.map((name) => [name, name])], other ? asked : "", (value) => change({ with: value }))
          : el("p.note", {}, "No other model's episode of this task is in this report.")),
      asked && !other ? el("p.error", {}, `No episode of this task by ${asked} is in this report.`) : null,
      sides.length > 1 ? difference(sides) : null,
      Turns.opening(sides[0].opening, words),
      el(`div.columns${sides.length > 1 ? ".two" : ""}`, {}, sides.map((side, i) => head(side, sides.length > 1 ? i : -1)), rows(sides, words)));
  };

  const head = ({ line, record }, side) => {
    const outcome = meta.outcomes.episodes[line[2]];
    return el("header.column", {},
      el("h2", {}, side < 0 ? null : el(`span.key.${"ab"[side]}`, {}, "AB"[side]), meta.models[line[3]]),
      el("p.facts", {}, Turns.chip(outcome, outcome), el("span", {}, `stopped by ${Dom.words(meta.stops[line[4]])}`),
        el("span", {}, `reward ${number(record.reward)}`), el("span", {}, plural(line[5], "round")),
        record.tokens ? el("span", {}, plural(record.tokens, "token")) : null),
      record.error ? el("div.error", {}, Dom.text(record.error)) : null);
  };

  const difference = ([a, b]) => {
    const at = a.steps.findIndex((step, i) => step.action !== b.steps[i]?.action);
    const said = at >= 0 ? `The actions first differ at step ${at + 1}.` : a.steps.length === b.steps.length ? "Both take the same actions." : `The same actions as far as step ${a.steps.length}.`;
    return el("p.agreement", {}, said);
  };

  // Step beside step, so that both are read together.
  const rows = (sides, words) => {
    const most = Math.max(...sides.map((side) => side.steps.length));
    const found = [];
    for (let i = 0; i < most; i++) {
      for (const side of sides) found.push(side.steps[i] ? card(side, i, words) : el("div.step.empty"));
    }
    for (const side of sides) found.push(Turns.closing(side.closing, words) ?? el("div"));
    return found;
  };

  const card = ({ steps, record }, i, words) => {
    const mark = record.gold?.find(([step]) => step === i + 1);
    return el("section.step", { id: `step-${i + 1}`, tabindex: "-1", "aria-label": `Step ${i + 1}` },
      el("header", {}, el("h3", {}, `Step ${i + 1}`), mark ? Turns.chip(`${mark[2]}, rank ${mark[1]}`, "gold") : null),
      el("div.body", {}, steps[i].before.map((turn) => Turns.message(turn, words)), Turns.reply(steps[i], words)));
  };

  return { start, show };
})();
