// Elements, numbers, questions to the server. Text from runs becomes text nodes, never markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const EMBEDDED = JSON.parse(document.getElementById("data").textContent);

/** An element: h("p", {class: "x", onclick: f}, "text", child). */
function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for SVG. */
function s(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const c of children.flat(3)) if (c !== null && c !== undefined && c !== false) element.append(c);
  return element;
}

/** The answer to a question such as "episodes/0/train/3"; of a report, what it was given. */
async function ask(question) {
  if (EMBEDDED) {
    if (question in EMBEDDED.answers) return EMBEDDED.answers[question];
    throw new Error("This report does not hold it: open the run with python -m tarl_jax.view");
  }
  const response = await fetch("api/" + question);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Where the sound of a clip is. */
function clipAddress(run, name) {
  return EMBEDDED ? EMBEDDED.clips[run + "/" + name] : `clip/${run}/${encodeURIComponent(name)}`;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : digits);
}

/** [least, greatest] of numbers, of which there may be more than a call takes arguments. */
function extent(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value), digits);
}

const seriesColour = (i) => `var(--s${i % 6})`;

/** Red for below 0, green for above, none at 0; `size` is where it is fullest. */
function shade(value, size) {
  const part = Math.max(-1, Math.min(1, value / (size || 1)));
  const colour = part < 0 ? "var(--bad)" : "var(--good)";
  return `color-mix(in srgb, ${colour} ${Math.round(Math.abs(part) * 60)}%, transparent)`;
}

/** {key: value} in the part of the address behind "#". */
const place = {
  read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
  write(values) {
    const kept = Object.entries({...place.read(), ...values}).filter(([, v]) => v !== "" && v !== null);
    const text = "#" + new URLSearchParams(kept);
    if (text !== location.hash) history.replaceState(null, "", text);
  },
};
