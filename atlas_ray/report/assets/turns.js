"use strict";
// A conversation as steps, each with what stands before it, and how the pieces look.

const Turns = (() => {
  const { el } = Dom;
  const ROLES = { user: "observation", assistant: "reply, not trained on", system: "system", tool: "result of a tool" };

  // turns: [role, text], ["tool", text, name] or ["step", thought, action(, reply(, calls))], calls as [name, arguments]:
  // pairs of name and value, or a text. The opening is all before what the first step answers.
  const group = (turns) => {
    const steps = [];
    let before = [];
    for (const turn of turns) {
      if (turn[0] === "step") {
        steps.push({ index: steps.length + 1, before, thought: turn[1], action: turn[2], reply: turn[3] ?? undefined, calls: turn[4] });
        before = [];
      } else before.push(turn);
    }
    const opening = steps.length ? steps[0].before.splice(0, steps[0].before.length - 1) : before.splice(0);
    return { opening, steps, closing: before };
  };

  const message = ([role, text, name], words) => el(`div.turn.${role}`, {},
    el("span.role", {}, ROLES[role] ?? role),
    name ? el("div.called", {}, el("code.name", {}, name), Dom.text(text || "(empty)", words)) : Dom.text(text || "(empty)", words));

  // A call of a tool: its name, and its arguments by name.
  const call = ([name, given], words) => el("div.turn.call", {}, el("span.role", {}, "call"),
    el("div.called", {}, el("code.name", {}, name), typeof given === "string" ? Dom.text(given, words)
      : el("dl.arguments", {}, given.map(([key, value]) => [el("dt", {}, key), el("dd", {}, Dom.text(value, words))]))));

  const opening = (turns, words) => turns.length
    ? el("details.opening", {}, el("summary", {}, `Instruction (${Dom.plural(turns.length, "message")})`), turns.map((turn) => message(turn, words)))
    : null;

  const closing = (turns, words) => turns.length ? el("section.closing", {}, el("h3", {}, "After the last step"), turns.map((turn) => message(turn, words))) : null;

  // Thought, action and the end of the turn: what carries loss where the step is trained on.
  const reply = (step, words, tint = "") => el(`div.reply${tint ? `.${tint}` : ""}`, {},
    step.thought ? el("div.turn.thought", {}, el("span.role", {}, "thought"), Dom.text(step.thought, words)) : null,
    step.calls ? step.calls.map((one) => call(one, words)) : step.action || !step.thought ? el("div.turn.action", {}, el("span.role", {}, "action"), Dom.text(step.action || "(empty)", words)) : null,
    tint ? el("span.end", { title: "The end of the turn carries loss too" }, "end of turn") : null,
    step.reply !== undefined ? el("details.raw", {}, el("summary", {}, "Reply as written"), Dom.text(step.reply, words)) : null);

  const chip = (text, kind = "") => el(`span.chip${kind ? `.${kind.replaceAll(" ", "-")}` : ""}`, {}, text);

  return { group, message, opening, closing, reply, chip };
})();
