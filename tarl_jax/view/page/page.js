// The page: header, views by name, keyboard, and what is new in a run that goes on.
"use strict";

const VIEWS = {curves: "Curves", evaluations: "Evaluations", episodes: "Episodes", runs: "Runs"};
const KEYS = [["1–4", "curves, evaluations, episodes, runs"], ["j  k", "next, previous episode"], ["]  [", "next, previous step"],
  ["b", "beside the next one of its group"], ["t", "tokens"], ["c", "colour by score, advantage, log-prob"], ["/", "find"],
  ["d", "dark or light"], ["Esc", "back"], ["?", "this list"]];
let runs = [], drawing = 0, gone = false;

/** The runs with their metrics; keeps what the user hid. */
async function load() {
  const states = await ask("state");
  const before = runs;
  runs = await Promise.all(states.map(async (state, i) => {
    const run = {...state, hidden: before[i]?.hidden || false, records: before[i]?.records || []};
    if (run.problem || before[i]?.stamp === run.stamp) return run;
    try { run.records = await ask(`metrics/${i}`); } catch (error) { run.problem = error.message; }
    return run;
  }));
}

/** Of each run that cannot be read, why; the others are shown all the same. */
const problems = () => runs.filter((run) => run.problem).map((run) =>
  h("div", {class: "problem"}, runs.length > 1 && h("b", {}, run.name, ": "), run.problem));

async function draw() {
  const mine = ++drawing, main = document.querySelector("main");
  header();
  let view;
  try {
    const make = {curves: curvesView, evaluations: evaluationsView, episodes: episodesView, runs: runsView}[viewName()];
    view = await make(runs);
  } catch (error) {
    view = h("div", {class: "problem"}, error.message);
  }
  if (mine === drawing) main.replaceChildren(...problems(), view); // else a later call draws
}

const viewName = () => place.read().view in VIEWS ? place.read().view
  : runs.some((run) => run.records.length > 1) ? "curves" : "episodes";

function header() {
  document.querySelector("header").replaceChildren(
    h("h1", {}, runs.length === 1 ? runs[0].name : `${runs.length} runs`),
    h("nav", {}, Object.entries(VIEWS).map(([name, label]) => h("button", {"aria-current": viewName() === name ? "page" : null,
      onclick: () => go(name)}, label))),
    h("span", {class: "runs"}, runs.map((run, i) => h("label", {class: "run"}, runs.length > 1 && h("input", {type: "checkbox",
      checked: !run.hidden, onchange: (e) => { run.hidden = !e.target.checked; draw(); }}),
      h("span", {class: "dot", style: {background: seriesColour(i)}}), runs.length > 1 && run.name,
      run.live && h("span", {class: "live"}, "● live"), run.steps !== null && h("span", {class: "soft"},
        `step ${extent([0, ...run.records.map((r) => r.step)])[1]} of ${run.steps}`)))),
    ...(gone ? [h("span", {class: "problem small"}, "the command has ended: start it again to go on reading")] : []),
    h("span", {class: "grow"}),
    h("button", {onclick: dark, title: "dark or light (d)", "aria-label": "dark or light"}, "◐"),
    h("button", {class: "keys", onclick: () => help(), title: "keys (?)", "aria-label": "keys"}, "?"));
}

function go(view) {
  place.write({view});
  draw();
}

function dark() {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("tarl-theme", name); } catch { /* a file has no storage */ }
}

function help() {
  const box = h("dialog", {onclose: (e) => e.target.remove()}, h("h2", {}, "Keys"), h("dl", {}, KEYS.flatMap(([key, what]) =>
    [h("dt", {}, key.split("  ").map((k, i) => [i ? " " : "", h("kbd", {}, k)])), h("dd", {}, what)])),
    h("form", {method: "dialog"}, h("button", {}, "close")));
  document.body.append(box);
  box.showModal();
}

/** Opens the episode that many places further down the list. */
function move(by) {
  const items = [...document.querySelectorAll(".item")].map((item) => +item.dataset.index);
  const now = items.indexOf(+document.querySelector('.item[aria-selected="true"]')?.dataset.index);
  const next = items[Math.max(0, Math.min(items.length - 1, now + by))];
  if (next !== undefined) openEpisode(next);
}

const press = {
  j: () => move(1), k: () => move(-1), d: dark, "?": help,
  "]": () => step(1), "[": () => step(-1),
  t: () => document.getElementById("tokens")?.click(),
  b: () => document.querySelector(".beside")?.click(),
  c: () => { place.write({colour: COLOURS[(COLOURS.indexOf(place.read().colour || "score") + 1) % COLOURS.length]}); draw(); },
  "/": () => document.getElementById("find")?.focus(),
  Escape: () => { place.write(place.read().beside ? {beside: ""} : {i: ""}); draw(); },
  ...Object.fromEntries(Object.keys(VIEWS).map((name, i) => [String(i + 1), () => go(name)])),
};

function step(by) {
  const at = readerPlace(runs), next = at.steps[at.steps.indexOf(at.step) + by];
  if (next !== undefined) { place.write({step: next, kind: at.kind, i: "", beside: ""}); draw(); }
}

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA|AUDIO)$/.test(event.target.tagName) || document.querySelector("dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in press)) return;
  event.preventDefault();
  press[event.key]();
});
window.addEventListener("hashchange", draw);

/** Draws anew where a run has written something; not while somebody listens or types. */
async function refresh() {
  const before = JSON.stringify(runs.map((run) => [run.stamp, run.live]));
  const there = gone;
  try { await load(); gone = false; } catch (error) { gone = error instanceof TypeError; } // no answer: what is there stays
  if (gone !== there) header();
  if (gone) return;
  const busy = /^(INPUT|SELECT)$/.test(document.activeElement?.tagName) || [...document.querySelectorAll("audio")].some((a) => !a.paused);
  if (busy || JSON.stringify(runs.map((run) => [run.stamp, run.live])) === before) return;
  if (viewName() === "episodes" && place.read().i !== undefined) header();
  else draw();
}

let kept = null;
try { kept = localStorage.getItem("tarl-theme"); } catch { /* a file has no storage */ }
theme(kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
load().then(draw).then(() => { if (!EMBEDDED) setInterval(refresh, 3000); }).catch((error) =>
  document.querySelector("main").replaceChildren(h("div", {class: "problem"}, error.message)));
