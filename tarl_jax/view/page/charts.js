// Curves: small panels of SVG, one or several runs, with intervals, and the evaluations as a table.
"use strict";

const WIDTH = 460, HEIGHT = 220, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;
const PANELS = [
  {title: "Pass rate", series: [["train/pass_rate", "training"], ["eval/pass^1", "held out, pass^1"]]},
  {title: "Held out", series: [["eval/clean_pass", "clean pass"], ["eval/pass^4", "pass^4"]]},
  {title: "Share with a major deviation", series: [["judge/major_share", "training"],
    ["eval/major_share", "held out"]]},
  {title: "Reward", alone: 1, series: [["reward/mean", "total"], ["reward/terminal", "verdict"],
    ["reward/turns", "turns"], ["reward/major", "major deviations"]]},
  {title: "KL from sampler to update (nats per token)", series: [["rl/kl", "KL"]]},
  {title: "Entropy (nats per token)", series: [["rl/entropy", "entropy"]]},
  {title: "Tokens of an episode", series: [["rollout/episode_tokens", "training"],
    ["eval/episode_tokens", "held out"]]},
  {title: "Turns of an episode", series: [["rollout/turns", "training"], ["eval/turns", "held out"]]},
  {title: "Seconds of a step", alone: 1, series: [["seconds/step", "whole"], ["seconds/rollout", "rollout"],
    ["seconds/update", "update"], ["seconds/judge", "judge"]]},
];

/** [{x, y, low, high}] of a key in order of step; the last record of a step counts. */
function pointsOf(records, key) {
  const found = new Map();
  for (const r of records) {
    if (typeof r[key] === "number") {
      found.set(r.step, {x: r.step, y: r[key], low: r[key + "_low"], high: r[key + "_high"]});
    }
  }
  return [...found.values()].sort((a, b) => a.x - b.x);
}

function smoothed(points) {
  const reach = Math.floor(points.length / 16), sums = [0];
  for (const p of points) sums.push(sums.at(-1) + p.y);
  return points.map((p, i) => {
    const from = Math.max(0, i - reach), to = Math.min(points.length, i + reach + 1);
    return {...p, y: (sums[to] - sums[from]) / (to - from)};
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0);
  return found;
}

/** A panel; null where no run has any of its series. Of several runs a colour is a run, and a dash
 * a series; `alone`: how many series are then shown. */
function panel(title, wanted, runs, alone = wanted.length) {
  const lines = [], several = runs.length > 1;
  runs.forEach((run, r) => wanted.slice(0, several ? alone : undefined).forEach(([key, label], k) => {
    const points = pointsOf(run.records, key);
    if (!points.length || run.hidden) return;
    lines.push({points, label, run: run.name, colour: seriesColour(several ? r : k),
      dash: several ? ["", "5 3", "2 3", "8 3 2 3"][k % 4] : ""});
  }));
  if (!lines.length) return null;
  const all = lines.flatMap((l) => l.points);
  const [x0, last] = extent(all.map((p) => p.x)), x1 = Math.max(last, x0 + 1);
  const values = all.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  let [y0, y1] = extent(values);
  if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
  if (y1 - y0 < 1e-9) [y0, y1] = y0 >= 0 ? [0, 2 * y1 || 1] : [2 * y0, 0];
  const pad = (y1 - y0) * 0.05;
  if (y0 !== 0) y0 -= pad;
  y1 += pad;
  const X = (x) => LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const Y = (y) => HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const path = (ps) => ps.map((p, i) => `${i ? "L" : "M"}${X(p.x).toFixed(1)} ${Y(p.y).toFixed(1)}`).join("");
  const svg = s("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title});
  const heights = ticks(y0, y1, 6), gap = heights[1] - heights[0];
  const decimals = Math.min(6, Math.max(0, Math.ceil(-Math.log10(gap) - 1e-9)));
  for (const t of heights) {
    svg.append(s("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: Y(t), y2: Y(t), stroke: "var(--line)"}),
      s("text", {x: LEFT - 6, y: Y(t) + 4, "text-anchor": "end"},
        t.toLocaleString("en", {minimumFractionDigits: decimals, maximumFractionDigits: decimals})));
  }
  for (const t of ticks(x0, x1, 6).filter(Number.isInteger)) {
    svg.append(s("text", {x: X(t), y: HEIGHT - 6, "text-anchor": "middle"}, String(t)));
  }
  for (const l of lines) {
    const range = l.points.filter((p) => typeof p.low === "number" && typeof p.high === "number");
    if (range.length > 1) {
      const edge = [...range.map((p) => ({x: p.x, y: p.high})),
        ...range.map((p) => ({x: p.x, y: p.low})).reverse()];
      svg.append(s("path", {d: path(edge) + "Z", fill: l.colour, opacity: 0.15}));
    } else range.forEach((p) => svg.append(s("line", {x1: X(p.x), x2: X(p.x), y1: Y(p.low), y2: Y(p.high),
      stroke: l.colour, opacity: 0.5, "stroke-width": 2})));
    const many = l.points.length > 24;
    if (many) svg.append(s("path", {d: path(l.points), fill: "none", stroke: l.colour, opacity: 0.3}));
    svg.append(s("path", {d: path(many ? smoothed(l.points) : l.points), fill: "none", stroke: l.colour,
      "stroke-width": 2, "stroke-dasharray": l.dash, "stroke-linejoin": "round"}));
    if (l.points.length <= 12) l.points.forEach((p) => svg.append(s("circle", {cx: X(p.x), cy: Y(p.y), r: 3, fill: l.colour})));
  }
  const hair = s("line", {y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--soft)", visibility: "hidden"});
  svg.append(hair);
  const reading = h("div", {class: "reading"});
  const steps = [...new Set(all.map((p) => p.x))].sort((a, b) => a - b);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const at = steps.reduce((best, step) => Math.abs(step - x) < Math.abs(best - x) ? step : best);
    for (const side of ["x1", "x2"]) hair.setAttribute(side, X(at));
    hair.setAttribute("visibility", "visible");
    reading.replaceChildren(`step ${at}   `, ...lines.flatMap((l) => {
      const p = l.points.find((q) => q.x === at);
      return p ? [h("span", {style: {color: l.colour}}, "● "), `${l.label} ${number(p.y)}${interval(p)}   `] : [];
    }));
  });
  svg.addEventListener("pointerleave", () => {
    hair.setAttribute("visibility", "hidden");
    reading.replaceChildren();
  });
  const named = lines.filter((l, i) => !several || lines.findIndex((m) => m.label === l.label) === i);
  const legend = h("div", {class: "legend"}, named.map((l) => h("span", {},
    s("svg", {viewBox: "0 0 22 8"}, s("line", {x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2.5,
      stroke: several ? "var(--soft)" : l.colour, "stroke-dasharray": l.dash})), " ", l.label)));
  return h("section", {class: "card chart"}, h("h2", {}, title), svg, legend, reading);
}

function interval(p) {
  return typeof p.low === "number" ? ` (${number(p.low)} to ${number(p.high)})` : "";
}

function curvesView(runs) {
  const keys = [...new Set(runs.flatMap((run) => run.records.flatMap(Object.keys)))].filter(
    (k) => k !== "step" && k !== "kind" && !/_(low|high)$/.test(k)).sort();
  if (!keys.length) return h("div", {class: "empty"}, "No metrics yet.");
  const grid = h("div", {class: "charts"});
  const chosen = place.read().metric || "";
  const own = keys.includes(chosen) ? panel(chosen, [[chosen, chosen]], runs) : null;
  grid.append(...[own, ...PANELS.map((p) => panel(p.title, p.series, runs, p.alone))].filter(Boolean));
  const field = h("input", {list: "metrics", placeholder: "another metric …", value: chosen,
    "aria-label": "another metric", onchange: (e) => { place.write({metric: e.target.value}); draw(); }});
  return h("div", {}, h("div", {class: "bar"}, field,
    h("datalist", {id: "metrics"}, keys.map((k) => h("option", {value: k}))),
    h("span", {class: "soft small"}, "Bands are 95% intervals; thin lines are single steps.")), grid);
}

const COLUMNS = [["eval/pass^1", "pass^1", 1], ["eval/pass^2", "pass^2", 1], ["eval/pass^3", "pass^3", 1],
  ["eval/pass^4", "pass^4", 1], ["eval/tau2_pass^1", "τ² pass^1", 1], ["eval/clean_pass", "clean pass", 1],
  ["eval/major_share", "major deviations", -1], ["eval/maths_pass@1", "maths pass@1", 1],
  ["eval/waits", "waits", 0], ["eval/turns", "turns", 0], ["eval/episode_tokens", "tokens", 0]];

function evaluationsView(runs) {
  const rows = runs.flatMap((run, r) => run.hidden ? [] : run.records
    .filter((e) => e.kind !== "train" && Object.keys(e).some((k) => k.startsWith("eval/")))
    .map((e) => ({run, r, e})));
  if (!rows.length) return h("div", {class: "empty"}, "No evaluation yet.");
  const shown = COLUMNS.filter(([key]) => rows.some(({e}) => typeof e[key] === "number"));
  const words = {base: "base", final: "trained", eval: "evaluation"};
  const first = (run) => rows.find((row) => row.run === run).e;
  return h("div", {class: "card scroll"}, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}, "run"), h("th", {}, "which"), h("th", {class: "number"}, "step"),
      shown.map(([, label]) => h("th", {class: "number"}, label)))),
    h("tbody", {}, rows.map(({run, r, e}) => h("tr", {},
      h("td", {}, h("span", {class: "run"}, h("span", {class: "dot", style: {background: seriesColour(r)}}), run.name)),
      h("td", {}, words[e.kind] || e.kind), h("td", {class: "number"}, String(e.step)),
      shown.map(([key, , better]) => {
        const from = first(run)[key], change = e !== first(run) && e[key] - from;
        return h("td", {class: "number"}, number(e[key]),
          typeof e[key + "_low"] === "number" && h("span", {class: "range"},
            `${number(e[key + "_low"])}–${number(e[key + "_high"])}`),
          change !== false && Number.isFinite(change) && change !== 0 && h("span", {
            class: "range " + (better * change > 0 ? "plus" : better * change < 0 ? "minus" : "")}, signed(change, 3)));
      }))))), h("p", {class: "soft small"},
    "Below each number its 95% interval by bootstrap over tasks, then how far it is from the run's first evaluation."));
}

function runsView(runs) {
  const words = said => said.flatMap(word => [h("span", {class: "word"}, word), " "]);  // broken between, not inside
  return h("div", {class: "charts runs"}, runs.map((run, r) => h("section", {class: "card"},
    h("h2", {class: "run"}, h("span", {class: "dot", style: {background: seriesColour(r)}}), run.name),
    h("dl", {class: "mono"}, Object.entries({folder: run.path, started: run.start.time, commit: run.start.commit,
      devices: (run.start.devices || []).join(", "), command: words(run.start.command || [])})
      .filter(([, v]) => v && v.length).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
    h("h2", {}, "What differs from the defaults"),
    h("dl", {class: "mono"}, Object.entries(run.changed).flatMap(([k, v]) => [h("dt", {}, k),
      h("dd", {}, typeof v === "string" ? v : JSON.stringify(v))])))));
}
