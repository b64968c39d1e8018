// Episodes: a list to filter, one to read, two of a group side by side.
"use strict";

const COLOURS = ["score", "advantage", "log-prob"];
const FILTERS = {success: ["success", "failure", "broken"], deviation: ["major", "minor", "none", "not judged"]};

const verdict = (e) => e.success === true ? "success" : e.success === false ? "failure" : "broken";
const verdictTag = (e) => h("span", {class: "tag " + {success: "good", failure: "bad", broken: "warn"}[verdict(e)]}, verdict(e));

function deviation(e) {
  if (!e.scores) return "not judged";
  return e.scores.includes(-1) ? "major" : (e.minors || []).some(Boolean) ? "minor" : "none";
}

function scoreClass(score, minor) {
  return score > 0 ? "p1" : score < 0 ? "m1" : minor ? "minor" : "";
}

function scoreTag(e, turn) {
  const score = (e.scores || [])[turn];
  if (score === undefined) return null;
  const minor = (e.minors || [])[turn];
  const word = score > 0 ? "+1" : score < 0 ? "−1 major" : minor ? "0 minor" : "0";
  return h("span", {class: "tag " + (score > 0 ? "good" : score < 0 ? "bad" : minor ? "warn" : "")}, word);
}

/** Which episodes of a file are shown. */
function passes(e, at) {
  const words = (at.find || "").toLowerCase();
  return (!at.success || verdict(e) === at.success) && (!at.deviation || deviation(e) === at.deviation)
    && (!at.stop || e.stop === at.stop) && (!at.task || e.kind === at.task)
    && (!words || `${e.task} ${e.opening}`.toLowerCase().includes(words));
}

function choice(name, label, options, at, empty = "any") {
  return h("select", {"aria-label": label, onchange: (e) => { place.write({[name]: e.target.value}); draw(); }},
    empty !== null && h("option", {value: ""}, `${label}: ${empty}`),
    options.map((o) => h("option", {value: o, selected: at[name] === String(o)}, empty === null ? `${label} ${o}` : String(o))));
}

/** Where the reader stands, with what the address leaves open filled in. */
function readerPlace(runs) {
  const at = place.read();
  const run = runs[at.run] ? +at.run : Math.max(0, runs.findIndex((r) => r.files.train.length || r.files.eval.length));
  const files = runs[run].files;
  const kind = files[at.kind]?.length ? at.kind : files.train.length ? "train" : "eval";
  const steps = files[kind], step = steps.includes(+at.step) && at.step !== undefined ? +at.step : steps.at(-1);
  return {...at, run, kind, step, steps};
}

async function episodesView(runs) {
  const at = readerPlace(runs);
  const chooseRun = runs.length > 1 && h("select", {"aria-label": "run", onchange: (e) => {
    place.write({run: e.target.value, step: "", kind: "", i: ""}); draw(); }},
    runs.map((r, i) => h("option", {value: i, selected: i === at.run}, r.name)));
  if (!at.steps.length) return h("div", {}, h("div", {class: "bar filters"}, chooseRun),
    h("div", {class: "empty"}, "No episodes yet."));
  const every = await ask(`episodes/${at.run}/${at.kind}/${at.step}`);
  const found = every.filter((e) => passes(e, at));
  const index = found.some((e) => e.index === +at.i) && at.i !== undefined ? +at.i : found[0]?.index;
  const opened = at.i !== undefined;
  const filters = h("div", {class: "bar filters"},
    chooseRun,
    h("select", {"aria-label": "kind", onchange: (e) => { place.write({kind: e.target.value, step: "", i: ""}); draw(); }},
      [["train", "training"], ["eval", "evaluation"]].filter(([k]) => runs[at.run].files[k].length)
        .map(([k, label]) => h("option", {value: k, selected: k === at.kind}, label))),
    choice("step", "step", at.steps, {step: String(at.step)}, null),
    choice("success", "verdict", FILTERS.success, at),
    choice("deviation", "deviation", FILTERS.deviation, at),
    choice("stop", "ended by", [...new Set(every.map((e) => e.stop))].sort(), at),
    new Set(every.map((e) => e.kind)).size > 1 && choice("task", "kind of task", ["tool", "maths"], at),
    h("input", {type: "search", id: "find", placeholder: "find …", value: at.find || "", "aria-label": "find",
      onchange: (e) => { place.write({find: e.target.value}); draw(); }}),
    h("span", {class: "soft small", id: "count"}, `${found.length} of ${every.length}`));
  const list = h("div", {class: "card list", role: "listbox", "aria-label": "episodes"}, found.map((e) =>
    h("button", {class: "item", role: "option", "aria-selected": String(e.index === index), "data-index": e.index,
      onclick: () => openEpisode(e.index)},
      h("span", {class: "row"}, verdictTag(e), h("span", {class: "mono"}, signed(e.reward)), e.spoken && "🔊",
        h("span", {class: "grow"}), h("span", {class: "soft small"}, `${e.turns} turns`)),
      h("span", {class: "scores", title: "the judge's score of each turn"}, (e.scores || []).map((v, t) =>
        h("span", {class: "score " + scoreClass(v, (e.minors || [])[t])}))),
      h("span", {class: "opening small soft"}, e.opening || e.task))));
  const detail = h("div", {class: "detail"});
  if (index === undefined) detail.append(h("div", {class: "empty"}, every.length ? "No episode fits." : "The file holds no episodes."));
  else {
    const e = await ask(`episode/${at.run}/${at.kind}/${at.step}/${index}`);
    const group = every.filter((other) => other.task === e.task);
    const beside = group.some((o) => o.index === +at.beside) && at.beside !== undefined && +at.beside !== index;
    detail.append(beside
      ? comparison(e, await ask(`episode/${at.run}/${at.kind}/${at.step}/${at.beside}`), at)
      : episodeCard(e, at, group));
  }
  const view = h("div", {class: opened ? "open" : ""}, filters, h("div", {class: "reader"}, list, detail));
  queueMicrotask(() => list.querySelector('[aria-selected="true"]')?.scrollIntoView({block: "nearest"}));
  return view;
}

function openEpisode(index) {
  place.write({i: index, beside: ""});
  draw();
}

function heading(e) {
  return h("div", {class: "bar"}, h("button", {class: "back", onclick: () => { place.write({i: "", beside: ""}); draw(); }}, "‹ list"),
    verdictTag(e), h("b", {}, e.task), h("span", {class: "soft"}, `ended by ${e.stop}`),
    h("span", {}, `reward ${signed(e.reward)}`),
    h("span", {class: "soft small"}, Object.entries(e.reward_parts || {}).map(([k, v]) => `${k} ${signed(v)}`).join("  ")));
}

function episodeCard(e, at, group) {
  const colour = COLOURS.includes(at.colour) ? at.colour : "score", about = e.about;
  const lists = {outputs: about.outputs, assertions: about.assertions};
  const facts = {"the user wants": about.instruction, ...(about.gold_calls || []).length
    ? {"right calls": about.gold_calls.map(callText).join("\n")} : {},
    ...Object.fromEntries(Object.entries(lists).filter(([, v]) => v?.length).map(([k, v]) => [k, v.join("\n")])),
    "user": about.user_id, "persona": about.persona, "seed": e.seed,
    "length": `${e.turns} turns, ${e.tokens} tokens; an expert takes ${about.expert_turns ?? "?"} turns`, ...e.facts};
  const marks = {compare: group.length > 1};
  return h("div", {}, heading(e),
    h("div", {class: "card"}, h("dl", {}, Object.entries(facts).filter(([, v]) => v !== null && v !== undefined && v !== "")
      .flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, String(v))]))),
    h("div", {class: "bar", style: {"margin-top": "10px"}},
      h("label", {class: "small"}, "colour turns by ", h("select", {"aria-label": "colour", id: "colour", onchange: (ev) => {
        place.write({colour: ev.target.value}); draw(); }}, COLOURS.map((c) => h("option", {value: c, selected: c === colour}, c)))),
      h("button", {id: "tokens", "aria-pressed": String(at.tokens === "1"), onclick: () => {
        place.write({tokens: at.tokens === "1" ? "" : "1"}); draw(); }}, at.tokens === "1" ? "hide tokens" : "show tokens"),
      marks.compare && h("span", {class: "small soft"}, "beside another of its group: "),
      marks.compare && group.filter((o) => o.index !== e.index).map((o) => h("button", {class: "beside small",
        title: `${verdict(o)}, reward ${signed(o.reward)}`, onclick: () => { place.write({i: e.index, beside: o.index}); draw(); }},
        h("span", {class: "tag " + (o.success ? "good" : "bad")}, signed(o.reward))))),
    h("div", {class: "talk"}, e.segments.map((seg) => bubble(e, seg, at, colour))),
    changes("What the episode changed in the database", e.diff, ["before", "after"], "nothing"),
    e.gold_diff?.length ? changes("Where the database ends up wrong", e.gold_diff, ["should be", "is"]) : null,
    e.outputs_found === false && h("p", {class: "tag warn"}, "a required output was never said"));
}

function callText(call) {
  return `${call.name}(${Object.entries(call.arguments || {}).map(([k, v]) => `${k}=${JSON.stringify(v)}`).join(", ")})`;
}

function callView(call) {
  return h("div", {class: "call"}, h("b", {}, call.name), "(", Object.entries(call.arguments || {}).map(([k, v], i) =>
    [i ? ", " : "", h("span", {class: "soft"}, k + "="), JSON.stringify(v)]), ")");
}

/** The mean advantage of a turn; undefined where nobody said. */
function advantageOf(e, turn) {
  const all = (e.advantages || [])[turn];
  return all?.length ? all.reduce((a, b) => a + b, 0) / all.length : undefined;
}

function meanLogProb(seg) {
  const own = seg.log_probs.filter((_, i) => seg.sampled[i]);
  return own.length ? own.reduce((a, b) => a + b, 0) / own.length : undefined;
}

function edge(e, seg, colour) {
  if (seg.role !== "agent") return null;
  const score = (e.scores || [])[seg.turn], advantage = advantageOf(e, seg.turn);
  if (colour === "advantage") return advantage === undefined ? null : shade(advantage, strongest(e));
  if (colour === "log-prob") return shade(Math.min(0, (meanLogProb(seg) ?? 0)), 1.5);
  return {p1: "var(--good)", m1: "var(--bad)", minor: "var(--warn)"}[scoreClass(score, (e.minors || [])[seg.turn])] || null;
}

const STRONGEST = new WeakMap(); // by episode: each of its tokens asks

function strongest(e) {
  if (!STRONGEST.has(e)) STRONGEST.set(e, extent([1e-9, ...(e.advantages || []).flat().map(Math.abs)])[1]);
  return STRONGEST.get(e);
}

function pretty(text) {
  if (text.length < 90 || !/^[[{]/.test(text)) return text;
  try { return JSON.stringify(JSON.parse(text), null, 1); } catch { return text; }
}

/** One segment. `same`: how many characters of its text are those of the episode beside it; `fork`:
 * whether it is the first turn in which the agent does something else than there. */
function bubble(e, seg, at, colour, same = null, fork = false) {
  const text = seg.role === "tool" ? pretty(seg.text) : seg.text;
  const turn = seg.role === "agent" ? seg.turn : null, advantage = turn === null ? undefined : advantageOf(e, turn);
  const note = turn === null ? "" : (e.judge_notes || [])[turn];
  const facts = Object.entries(seg.info).filter(([k, v]) => v !== null && v !== false && k !== "user_calls" && k !== "heard")
    .map(([k, v]) => v === true ? k : `${k}: ${typeof v === "string" ? v : JSON.stringify(v)}`).join("  ·  ");
  const body = same !== null && same < seg.text.length
    ? [seg.text.slice(0, same), h("mark", {}, seg.text.slice(same))] : [text];
  const inside = [seg.thought && h("div", {class: "thought"}, seg.thought),
    text && h("div", {class: "text"}, body), seg.unheard && h("div", {class: "unheard"}, "nobody heard: ", seg.unheard), seg.calls.map(callView),
    (seg.info.user_calls || []).map((c) => h("div", {}, callView({name: c.name, arguments: c.kwargs}),
      h("div", {class: "text mono"}, String(c.output ?? "")))),
    seg.sound && soundView(at.run, seg.sound), "heard" in seg.info && heardView(seg),
    note && h("div", {class: "note"}, note),
    at.tokens === "1" && seg.ids.length > 0 && tokensView(e, seg, colour)];
  const who = h("div", {class: "who"}, h("b", {}, seg.role === "tool" ? "answer of the tool" : seg.role),
    turn !== null && `turn ${turn}`, turn !== null && scoreTag(e, turn),
    advantage !== undefined && h("span", {class: "tag advantage", style: {background: shade(advantage, strongest(e))}},
      `advantage ${signed(advantage)}`), fork && h("span", {class: "tag fork"}, "here the agents part"), facts && h("span", {}, facts));
  const classes = `said ${seg.role}` + (seg.info.error ? " wrong" : "") + (fork ? " forked" : "");
  const mark = edge(e, seg, colour);
  if (seg.role === "system") return h("details", {class: classes}, h("summary", {}, "system"), inside);
  return h("div", {class: classes, style: mark ? {"--edge": mark} : {}}, who, inside);
}

/** What the policy's encoder made of a spoken turn; marked: words that were not written so. */
function heardView(seg) {
  const words = (text) => text.split(/\s+/).filter(Boolean), bare = (w) => w.toLowerCase().replace(/[.,:;?!]+$/, "");
  const heard = words(seg.info.heard), same = commonWords(words(seg.text).map(bare), heard.map(bare));
  const said = seg.info.spoken?.words;
  return h("div", {class: "heard"}, said && h("div", {}, "said: ", said),
    h("div", {}, "heard: ", heard.length ? heard.map((w, i) => [same.has(i) ? w : h("mark", {}, w), " "]) : "nothing"));
}

/** Which words of b stand in a longest common subsequence of a and b. */
function commonWords(a, b) {
  const best = Array.from({length: a.length + 1}, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const found = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { found.add(j); i++; j++; }
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return found;
}

function soundView(run, sound) {
  return h("audio", {controls: true, preload: "none", src: clipAddress(run, sound.clip)});
}

function tokensView(e, seg, colour) {
  const given = seg.role === "agent" ? (e.advantages || [])[seg.turn] || [] : [];
  let drawn = -1;
  return h("div", {class: "tokens"}, seg.ids.map((id, i) => {
    const sampled = Boolean(seg.sampled[i]), piece = e.pieces[id];
    if (sampled) drawn += 1;
    const advantage = sampled ? given.length > 1 ? given[drawn] : given[0] : undefined;
    const background = !sampled ? null : colour === "advantage" && advantage !== undefined
      ? shade(advantage, strongest(e)) : shade(Math.max(-4.6, seg.log_probs[i]), 4.6);
    return h("span", {class: "token" + (sampled ? "" : " forced"), style: background ? {background} : {}, title:
      `id ${id}` + (sampled ? `, log-prob ${number(seg.log_probs[i])}` : ", forced")
      + (advantage === undefined ? "" : `, advantage ${signed(advantage, 4)}`)}, piece === undefined ? `${id} ` : piece.replace(/\n/g, "⏎"));
  }));
}

/** Lines "what: before -> after" as a table; a line of another form stays as it is. */
function changes(title, lines, heads, none) {
  const rows = (lines || []).map((line) => {
    const parts = /^([^:]*(?:\[[^\]]*\])?): (.*) -> (.*)$/s.exec(line);
    return parts && !parts[2].includes(" -> ") ? h("tr", {}, h("td", {}, parts[1]), h("td", {}, h("del", {}, parts[2])),
      h("td", {}, h("ins", {}, parts[3]))) : h("tr", {}, h("td", {colspan: 3}, line));
  });
  return h("section", {class: "card", style: {"margin-bottom": "12px"}}, h("h2", {}, title), rows.length
    ? h("div", {class: "scroll"}, h("table", {class: "diff"}, h("thead", {}, h("tr", {}, h("th", {}, "what"), heads.map((t) => h("th", {}, t)))),
      h("tbody", {}, rows))) : h("span", {class: "soft"}, none));
}

/** [segment, character] where two episodes part; their lengths where they never do. */
function partingPoint(a, b) {
  const said = (seg) => seg && seg.role + "\n" + seg.thought + "\n" + JSON.stringify(seg.calls) + "\n" + seg.text;
  let i = 0;
  while (i < Math.max(a.length, b.length) && said(a[i]) === said(b[i])) i += 1;
  const [x, y] = [a[i]?.text || "", b[i]?.text || ""];
  let c = 0;
  while (c < Math.min(x.length, y.length) && x[c] === y[c]) c += 1;
  return [i, c];
}

/** The first turn in which the agents do something else, whatever their users say; -1: none. */
function otherTurn(a, b) {
  const acts = (e) => e.segments.filter((seg) => seg.role === "agent").map((seg) => JSON.stringify(seg.calls) + seg.text);
  const [x, y] = [acts(a), acts(b)];
  for (let turn = 0; turn < Math.max(x.length, y.length); turn++) if (x[turn] !== y[turn]) return turn;
  return -1;
}

function comparison(a, b, at) {
  const [from, letter] = partingPoint(a.segments, b.segments), fork = otherTurn(a, b);
  const colour = COLOURS.includes(at.colour) ? at.colour : "score";
  const column = (e) => h("div", {class: "talk"}, e.segments.slice(from).map((seg, i) =>
    bubble(e, seg, at, colour, i === 0 ? letter : null, seg.role === "agent" && seg.turn === fork)));
  const ends = (e) => h("div", {}, heading(e), changes("Changed in the database", e.diff, ["before", "after"], "nothing"),
    e.gold_diff?.length ? changes("Where it is wrong", e.gold_diff, ["should be", "is"]) : null);
  return h("div", {}, h("div", {class: "bar"}, h("button", {onclick: () => { place.write({beside: ""}); draw(); }}, "‹ one episode"),
    h("b", {}, a.about.task_id), h("span", {class: "soft"}, `episodes ${a.index} and ${b.index}`)),
    h("div", {class: "talk"}, a.segments.slice(0, from).map((seg) => bubble(a, seg, {...at, tokens: ""}, ""))),
    h("div", {class: "pair"}, h("div", {class: "parting", id: "parting"}, "here they part"), column(a), column(b), ends(a), ends(b)));
}
