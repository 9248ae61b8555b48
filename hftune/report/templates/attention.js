"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const MEAN = -1; // in place of a head: the mean over the heads
const TOP = 6;
const THUMB = 48;
const FULL_BAR = 0.05; // the least share that fills a bar, so that next to nothing looks like it
const LABEL_FONT = "ui-monospace, monospace";
const KINDS = {
  encoder: "encoder: text to text",
  decoder: "decoder: answer to answer",
  cross: "cross: answer to text",
};
const OUTSIDE = "O"; // the tag of words that are part of nothing
const RAMPS = {
  light: {
    from: ["#ffffff", "#cde2fb", "#6da7ec", "#2a78d6", "#104281", "#0a2547"],
    to: ["#ffffff", "#fbdfcc", "#f0a878", "#d9611e", "#8c360b", "#4f1d05"],
  },
  dark: {
    from: ["#1e1e1c", "#14345c", "#1c5cab", "#3987e5", "#86b6ef", "#e3effd"],
    to: ["#1e1e1c", "#50240e", "#98410f", "#dd6a28", "#f2ab7d", "#fdeadd"],
  },
};
const byId = (id) => document.getElementById(id);
const scheme = matchMedia("(prefers-color-scheme: dark)");
// q and k: the token that attends and the token that is attended to; kept: whether a click holds them.
const state = { map: 0, layer: 0, head: MEAN, hide: data.hide_special, q: 0, k: 0, kept: false, pair: null };
let maps = [], colours = {}, shown = {}, picture = null;

/* Numbers */

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function read(one) {
  const planes = await inflate(one.weights);
  const size = planes.length / 2, Q = one.queries.length, K = one.keys.length;
  const squares = Float32Array.from({ length: data.levels + 1 }, (_, i) => (i / data.levels) ** 2);
  const weights = new Float32Array(size);
  for (let i = 0; i < size; i++) weights[i] = squares[planes[i] | (planes[size + i] << 8)];
  return { ...one, weights, Q, K, offset: K - Q, square: one.kind !== "cross" };
}

function headWeights(map, layer, head) {
  const size = map.Q * map.K, start = layer * map.heads * size;
  if (head !== MEAN) return map.weights.subarray(start + head * size, start + (head + 1) * size);
  const mean = new Float32Array(size);
  for (let h = 0; h < map.heads; h++)
    for (let i = 0; i < size; i++) mean[i] += map.weights[start + h * size + i] / map.heads;
  return mean;
}

const visible = (tokens) => tokens.flatMap((token, i) => (state.hide && token.special ? [] : [i]));

function largest(weights, rows, columns, K) {
  let top = 0;
  for (const q of rows) for (const k of columns) top = Math.max(top, weights[q * K + k]);
  return top || 1;
}

function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.05) return "<0.1 %";
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/* Colours */

function ramp(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((i) => parseInt(stop.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (parts.length - 1), low = Math.min(Math.floor(place), parts.length - 2);
    return parts[low].map((value, c) => Math.round(value + (parts[low + 1][c] - value) * (place - low)));
  });
}

const shade = (weight, top) => Math.min(255, Math.round(255 * Math.sqrt(weight / top)));
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#141413" : "#ffffff");

/* Words */

function readable(text) {
  const marked = text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
  return marked.trim() || "\u2423".repeat(Math.max(marked.length, 1));
}

const label = (token) => readable(token.text);
const writes = (token) => token.output != null && token.segment === "generated";
const tag = (token) => (token.output === OUTSIDE || writes(token) ? null : token.output);

// What a row stands for: a decoder's token is read, and the next one written there.
function stepOf(token, cut = (text) => text) {
  return writes(token) ? `${cut(label(token))} \u2192 ${cut(readable(token.output))}` : cut(label(token));
}

function quoted(text) {
  const element = document.createElement("q");
  element.textContent = text;
  return element;
}

function say(element, ...parts) {
  element.replaceChildren(...parts);
}

function bars(list, rows, top) {
  list.replaceChildren(...rows.map(([name, share]) => {
    const item = document.createElement("li");
    item.append(...["name", "bar", "value"].map((kind) => {
      const part = document.createElement("span");
      part.className = kind;
      return part;
    }));
    item.children[0].textContent = item.children[0].title = name;
    item.children[1].style.width = `${(100 * share) / top}%`;
    item.children[2].textContent = percent(share);
    return item;
  }));
}

/* The parts of the page */

function writeFacts() {
  const map = maps[0], plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const size = (one) => `${plural(one.layers.length, "layer")}, ${plural(one.heads, "head")}`;
  const parts = maps.length > 1
    ? maps.map((one) => `${one.kind} ${size(one)}, ${one.Q} \u00d7 ${one.K} tokens`)
    : [plural(map.layers.length, "layer"), plural(map.heads, "head"), plural(map.K, "token")];
  byId("facts").textContent = [data.model, data.task, ...parts, ...data.remarks].join(" \u00b7 ");
  writePrediction(byId("prediction"), data.prediction);
}

function writePrediction(box, { kind, scores, entities }) {
  const element = (name, textContent) => Object.assign(document.createElement(name), { textContent });
  if (kind === "number") return box.replaceChildren(element("h2", `Predicted number: ${scores[0].name}`));
  if (kind === "text") {
    return box.replaceChildren(element("h2", "Written text"), element("p", scores[0].name || "(empty)"));
  }
  const titles = { label: "Predicted label", next_token: "Most likely next token", tags: "Predicted tags" };
  const list = element("ol", ""), rows = kind === "tags" ? tagRows(scores, entities)
    : scores.map(({ name, probability }) => [readable(name), probability]);
  list.className = "bars";
  bars(list, rows.slice(0, TOP), 1);
  box.replaceChildren(element("h2", titles[kind]), list);
  const note = kind !== "next_token" && rows.length > TOP ? `and ${rows.length - TOP} more`
    : rows.length ? "" : "no entity";
  if (note) box.append(Object.assign(element("p", note), { className: "note" }));
}

function tagRows(scores, entities) {
  if (entities) return entities.map(({ text, entity, score }) => [`${text} \u2192 ${entity}`, score]);
  const tagged = scores.filter(({ name }) => name !== null);
  return tagged.map(({ word, name, probability }) => [`${word} \u2192 ${name}`, probability]);
}

function writeHint() {
  const found = data.look_first, button = byId("look-first");
  if (!found) return;
  const at = lookedAt();
  button.hidden = false;
  button.textContent = `${maps.length > 1 ? `${maps[at].kind} attention, ` : ""}layer ${found.layer}, head ${found.head}`;
  button.after(`: there a token gives ${percent(found.share)} of its attention to one other, on average.`);
  button.before("Look first at ");
  button.addEventListener("click", () => {
    if (state.map !== at) openMap(at);
    choose({ layer: maps[at].layers.indexOf(found.layer), head: found.head });
  });
}

const lookedAt = () => Math.max(0, maps.findIndex(({ kind }) => kind === data.look_first?.kind));

function fillChoices() {
  const map = maps[state.map];
  const option = (value, text) => new Option(text, value);
  byId("map").replaceChildren(...maps.map((one, i) => option(i, KINDS[one.kind] ?? one.kind)));
  byId("map").value = state.map;
  byId("map-label").hidden = maps.length < 2;
  byId("layer").replaceChildren(...map.layers.map((number, i) => option(i, number)));
  byId("head").replaceChildren(option(MEAN, "mean over heads"),
    ...Array.from({ length: map.heads }, (_, h) => option(h, h)));
  byId("hide").checked = state.hide;
  byId("hide").disabled = !map.keys.some((token) => token.special);
}

function buildThumbs() {
  const map = maps[state.map], box = byId("thumbs"), cells = [];
  const text = (content) => Object.assign(document.createElement("span"), { textContent: content });
  box.style.gridTemplateColumns = `1.5rem repeat(${map.heads + 1}, minmax(22px, 1fr))`;
  cells.push(text(""), ...Array.from({ length: map.heads }, (_, h) => text(h)), text("mean"));
  map.layers.forEach((number, layer) => {
    cells.push(text(number));
    for (const head of [...Array(map.heads).keys(), MEAN]) {
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      const name = head === MEAN ? "mean over heads" : `head ${head}`;
      button.type = "button";
      button.title = `layer ${number}, ${name}`;
      button.setAttribute("aria-label", button.title);
      Object.assign(button.dataset, { layer, head });
      button.append(canvas);
      cells.push(button);
    }
  });
  box.replaceChildren(...cells);
}

function paintThumbs() {
  const map = maps[state.map], rows = visible(map.queries), columns = visible(map.keys);
  const high = Math.min(THUMB, rows.length), wide = Math.min(THUMB, columns.length);
  for (const button of byId("thumbs").querySelectorAll("button")) {
    const weights = headWeights(map, +button.dataset.layer, +button.dataset.head);
    const cells = new Float32Array(high * wide); // the largest weight of each block
    rows.forEach((q, i) => {
      const line = Math.floor((i * high) / rows.length) * wide;
      columns.forEach((k, j) => {
        const cell = line + Math.floor((j * wide) / columns.length);
        cells[cell] = Math.max(cells[cell], weights[q * map.K + k]);
      });
    });
    const canvas = button.firstChild;
    Object.assign(canvas, { width: wide, height: high });
    const pixels = new ImageData(wide, high);
    cells.forEach((weight, i) => pixels.data.set([...colours.from[shade(weight, 1)], 255], 4 * i));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
}

function markThumb() {
  for (const button of byId("thumbs").querySelectorAll("button")) {
    const chosen = +button.dataset.layer === state.layer && +button.dataset.head === state.head;
    button.setAttribute("aria-pressed", chosen);
    button.tabIndex = chosen ? 0 : -1;
    if (chosen && document.documentElement.dataset.ready) reveal(button, byId("overview"));
  }
}

function reveal(element, box) {
  if (!element) return;
  const inner = element.getBoundingClientRect(), outer = box.getBoundingClientRect();
  if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top + 8;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 8;
}

function buildText(box, tokens, axis) {
  const parts = [];
  const several = new Set(tokens.map((token) => token.segment)).size > 1;
  tokens.forEach((token, i) => {
    if (several && (i === 0 || tokens[i - 1].segment !== token.segment)) {
      parts.push(Object.assign(document.createElement("span"),
        { className: "segment", textContent: token.segment.replace("_", " ") }));
    }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "token";
    button.classList.toggle("word", /^\s/.test(token.text) || token.special);
    button.classList.toggle("special", token.special);
    button.classList.toggle("virtual", token.segment === "virtual");
    button.textContent = label(token);
    if (tag(token)) {
      button.append(Object.assign(document.createElement("span"), { className: "tag", textContent: tag(token) }));
    }
    Object.assign(button.dataset, { axis, index: i });
    parts.push(button);
    if (token.text.includes("\n")) parts.push(document.createElement("br"));
  });
  box.replaceChildren(...parts);
}

function paintText(box, tokens, current, weightOf, colour) {
  const buttons = box.querySelectorAll("button");
  const weights = tokens.map((_, i) => weightOf(i));
  buttons.forEach((button, i) => {
    const rgb = colour[shade(weights[i], shown.top)];
    button.hidden = state.hide && tokens[i].special;
    button.style.background = css(rgb);
    button.style.color = inkOn(rgb);
    button.classList.toggle("current", i === current);
    button.tabIndex = i === Math.max(current, 0) ? 0 : -1;
  });
  if (current >= 0) reveal(buttons[current], box);
  const order = weights.map((weight, i) => [weight, i])
    .filter(([weight, i]) => weight > 0 && !(state.hide && tokens[i].special))
    .sort((a, b) => b[0] - a[0]).slice(0, TOP);
  const hidden = weights.reduce((sum, weight, i) => sum + (state.hide && tokens[i].special ? weight : 0), 0);
  const longest = Math.max(FULL_BAR, ...order.map(([weight]) => weight));
  const name = box.id === "to-text" ? stepOf : label;
  return { rows: order.map(([weight, i]) => [name(tokens[i]), weight]), hidden, longest };
}

function paintFlows() {
  const map = maps[state.map], { q, k } = state;
  const row = (i) => (q < 0 ? 0 : shown.weights[q * map.K + i]);
  const column = (i) => shown.weights[i * map.K + k];
  const from = paintText(byId("from-text"), map.keys, map.square ? k : -1, row, colours.from);
  const to = paintText(byId("to-text"), map.queries, map.square ? q : -1, column, colours.to);
  const reader = q < 0 ? map.keys[k] : map.queries[q];
  const written = q >= 0 && writes(reader) ? [", where ", quoted(readable(reader.output)), " is written,"] : [];
  say(byId("from-title"), quoted(label(reader)), ...written, " attends to");
  say(byId("to-title"), quoted(label(map.keys[k])), " is attended to by");
  bars(byId("from-top"), from.rows, from.longest);
  bars(byId("to-top"), to.rows, to.longest);
  byId("from-hidden").textContent = q < 0
    ? "A virtual token of prefix tuning has keys and values only: it attends to nothing."
    : from.hidden ? `${percent(from.hidden)} goes to special tokens that are hidden.` : "";
  byId("to-hidden").textContent = "";
  byId("flows").classList.toggle("kept", state.kept);
  if (!state.pair) byId("readout").textContent = summary(map, from.rows);
}

function summary(map, rows) {
  if (state.q < 0 || !rows.length) return "";
  const [name, share] = rows[0];
  return `\u201c${stepOf(map.queries[state.q])}\u201d attends most to \u201c${name}\u201d: ${percent(share)}`;
}

function writeHabits() {
  const map = maps[state.map], rows = visible(map.queries), sums = {};
  const add = (name, weight) => { sums[name] = (sums[name] ?? 0) + weight / rows.length; };
  for (const q of rows) {
    for (let k = 0; k < map.K; k++) {
      const weight = shown.weights[q * map.K + k], token = map.keys[k], step = k - map.offset - q;
      if (token.special) add("special tokens", weight);
      if (token.segment === "virtual") add("virtual tokens", weight);
      if (k === 0) add("the first token", weight);
      if (map.square && step === 0) add("itself", weight);
      if (map.square && step === -1) add("the one before", weight);
      if (map.square && step === 1 && !map.causal) add("the next", weight);
    }
  }
  const order = ["itself", "the one before", "the next", "the first token", "special tokens", "virtual tokens"];
  byId("habits").replaceChildren(...order.filter((name) => name in sums).map((name) => {
    const item = document.createElement("div"), value = document.createElement("b");
    value.textContent = percent(sums[name]);
    item.append(`${name} `, value);
    return item;
  }));
}

/* The matrix */

function layOutMatrix() {
  const map = maps[state.map], rows = visible(map.queries), columns = visible(map.keys);
  const room = byId("matrix-box").clientWidth, canvas = byId("matrix");
  const pen = canvas.getContext("2d"), more = Math.max(rows.length, columns.length);
  let cell = Math.max(3, Math.min(24, Math.floor((room - 110) / columns.length)));
  const named = cell >= 9, font = `${Math.min(12, cell - 1)}px ${LABEL_FONT}`;
  pen.font = font;
  const longest = (tokens, which, name) => Math.max(...which.map((i) => pen.measureText(name(tokens[i])).width));
  const left = named ? Math.ceil(longest(map.queries, rows, rowName)) + 8 : 8;
  const above = named ? Math.ceil(longest(map.keys, columns, columnName)) + 8 : 8;
  if (!named) cell = Math.max(3, Math.min(8, Math.floor((room - left - 12) / more)));
  shown = { ...shown, rows, columns, cell, left, above, named, font };
  const dense = window.devicePixelRatio || 1;
  const width = left + cell * columns.length + 2, height = above + cell * rows.length + 2;
  Object.assign(canvas, { width: Math.ceil(width * dense), height: Math.ceil(height * dense) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  picture = document.createElement("canvas");
  Object.assign(picture, { width: columns.length, height: rows.length });
  const pixels = new ImageData(columns.length, rows.length);
  rows.forEach((q, i) => columns.forEach((k, j) => {
    const rgb = colours.from[shade(shown.weights[q * map.K + k], shown.top)];
    pixels.data.set([...rgb, 255], 4 * (i * columns.length + j));
  }));
  picture.getContext("2d").putImageData(pixels, 0, 0);
  byId("legend-top").textContent = percent(shown.top);
}

const clip = (text) => (text.length > 14 ? `${text.slice(0, 13)}\u2026` : text);
const columnName = (token) => clip(label(token));
const rowName = (token) => stepOf(token, clip);

function paintMatrix() {
  const map = maps[state.map], { rows, columns, cell, left, above, named, font } = shown;
  const canvas = byId("matrix"), pen = canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name);
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false;
  const width = cell * columns.length, height = cell * rows.length;
  pen.drawImage(picture, left, above, width, height);
  pen.strokeStyle = colour("--line");
  pen.lineWidth = 1;
  pen.strokeRect(left - 0.5, above - 0.5, width + 1, height + 1);
  boundaries(pen, map, colour("--muted"));
  const row = rows.indexOf(state.q), column = columns.indexOf(state.k);
  if (named) names(pen, map, row, column, font, colour);
  pen.lineWidth = cell >= 9 ? 2 : 1.5;
  pen.strokeStyle = colour("--from");
  if (row >= 0) pen.strokeRect(left, above + row * cell, width, cell);
  pen.strokeStyle = colour("--to");
  if (column >= 0) pen.strokeRect(left + column * cell, above, cell, height);
}

function boundaries(pen, map, colour) {
  const { rows, columns, cell, left, above } = shown;
  pen.fillStyle = colour;
  const changed = (tokens, which, i) => i > 0 && tokens[which[i]].segment !== tokens[which[i - 1]].segment;
  rows.forEach((_, i) => changed(map.queries, rows, i)
    && pen.fillRect(0, above + i * cell - 0.5, left + cell * columns.length, 1));
  columns.forEach((_, j) => changed(map.keys, columns, j)
    && pen.fillRect(left + j * cell - 0.5, 0, 1, above + cell * rows.length));
}

function names(pen, map, row, column, font, colour) {
  const { rows, columns, cell, left, above } = shown;
  const write = (token, name, strong, hue) => {
    pen.font = strong ? `bold ${font}` : font;
    pen.fillStyle = strong ? colour(hue) : colour(token.special ? "--muted" : "--ink");
    pen.fillText(name(token), 0, 0);
  };
  pen.textBaseline = "middle";
  rows.forEach((q, i) => {
    pen.save();
    pen.textAlign = "right";
    pen.translate(left - 4, above + (i + 0.5) * cell);
    write(map.queries[q], rowName, i === row, "--from");
    pen.restore();
  });
  columns.forEach((k, j) => {
    pen.save();
    pen.textAlign = "left";
    pen.translate(left + (j + 0.5) * cell, above - 4);
    pen.rotate(-Math.PI / 2);
    write(map.keys[k], columnName, j === column, "--to");
    pen.restore();
  });
}

function cellAt(event) {
  const box = byId("matrix").getBoundingClientRect();
  const i = Math.floor((event.clientY - box.top - shown.above) / shown.cell);
  const j = Math.floor((event.clientX - box.left - shown.left) / shown.cell);
  return i < 0 || j < 0 || i >= shown.rows.length || j >= shown.columns.length
    ? null : [shown.rows[i], shown.columns[j]];
}

/* What a choice changes */

function choose(changes) {
  Object.assign(state, changes);
  const map = maps[state.map];
  const rows = visible(map.queries), columns = visible(map.keys);
  if (!rows.includes(state.q) && state.q >= 0) state.q = nearest(rows, state.q);
  if (!columns.includes(state.k)) state.k = nearest(columns, state.k);
  if (map.square && !state.kept) state.q = state.k - map.offset;
  const weights = headWeights(map, state.layer, state.head);
  shown = { weights, top: largest(weights, rows, columns, map.K) };
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  const head = state.head === MEAN ? "mean over heads" : `head ${state.head}`;
  const kind = maps.length > 1 ? `${map.kind} attention, ` : "";
  byId("chosen").textContent = `${kind}layer ${map.layers[state.layer]}, ${head}`.replace(/^./, (c) => c.toUpperCase());
  byId("hidden-note").textContent = state.hide
    ? "Special tokens are hidden; the other weights stay as they are, so rows sum to less than 100 %." : "";
  byId("matrix").setAttribute("aria-label",
    `Attention of ${rows.length} tokens to ${columns.length} tokens, ${byId("chosen").textContent}. Arrow keys move.`);
  markThumb();
  writeHabits();
  layOutMatrix();
  point(state.q, state.k);
}

const nearest = (list, wanted) => list.reduce((best, i) => (Math.abs(i - wanted) < Math.abs(best - wanted) ? i : best), list[0]);

function point(q, k) {
  Object.assign(state, { q, k });
  paintFlows();
  paintMatrix();
}

function pointAt(axis, index) {
  const map = maps[state.map];
  if (map.square) {
    const key = axis === "k" ? index : index + map.offset;
    point(key - map.offset, key);
  } else if (axis === "k") point(state.q, index);
  else point(index, state.k);
}

function readPair(q, k) {
  const map = maps[state.map];
  state.pair = [q, k];
  byId("readout").textContent = q < 0 ? ""
    : `\u201c${stepOf(map.queries[q])}\u201d attends to \u201c${label(map.keys[k])}\u201d: ${percent(shown.weights[q * map.K + k])}`;
}

function over(button) {
  const axis = button.dataset.axis, index = +button.dataset.index;
  if (!state.kept) pointAt(axis, index);
  else if (axis === "k") readPair(state.q, index);
  else readPair(index, state.k);
}

function keep(button) {
  state.kept = true;
  state.pair = null;
  pointAt(button.dataset.axis, +button.dataset.index);
}

function release() {
  Object.assign(state, { kept: false, pair: null });
  settle();
}

/* Listening */

function steps(event, width) {
  return { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, Home: -1e9, End: 1e9 }[event.key];
}

function listenToTokens(box) {
  box.addEventListener("pointerover", (event) => event.target.matches(".token") && over(event.target));
  box.addEventListener("pointerleave", () => { if (state.pair) { state.pair = null; paintFlows(); } });
  box.addEventListener("focusin", (event) => event.target.matches(".token:focus-visible") && over(event.target));
  box.addEventListener("click", (event) => event.target.matches(".token") && keep(event.target));
  box.addEventListener("keydown", (event) => {
    const all = [...box.querySelectorAll(".token:not([hidden])")], step = steps(event, 1);
    if (step === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(all.length - 1, all.indexOf(event.target) + step));
    all[next].focus();
  });
}

function listenToThumbs() {
  const box = byId("thumbs");
  box.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose({ layer: +button.dataset.layer, head: +button.dataset.head });
  });
  box.addEventListener("keydown", (event) => {
    const all = [...box.querySelectorAll("button")], step = steps(event, maps[state.map].heads + 1);
    if (step === undefined) return;
    event.preventDefault();
    const next = all.indexOf(event.target) + step;
    const button = all[Math.max(0, Math.min(all.length - 1, next))];
    button.click();
    button.focus();
  });
}

function listenToMatrix() {
  const canvas = byId("matrix");
  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    readPair(...cell);
    if (!state.kept) point(...cell);
  });
  canvas.addEventListener("pointerleave", () => {
    state.pair = null;
    settle();
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    state.kept = true;
    point(...cell);
    readPair(...cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!moves) return;
    event.preventDefault();
    const move = (list, value, by) => list[Math.max(0, Math.min(list.length - 1, list.indexOf(value) + by))];
    const q = move(shown.rows, state.q, moves[0]), k = move(shown.columns, state.k, moves[1]);
    readPair(q, k);
    point(q, k);
  });
}

// After the matrix, where any two tokens can be pointed at, the two texts speak of one token again.
function settle() {
  const map = maps[state.map];
  if (map.square && !state.kept) point(state.k - map.offset, state.k);
  else point(state.q, state.k);
}

function listen() {
  byId("map").addEventListener("change", (event) => openMap(+event.target.value));
  byId("layer").addEventListener("change", (event) => choose({ layer: +event.target.value }));
  byId("head").addEventListener("change", (event) => choose({ head: +event.target.value }));
  byId("hide").addEventListener("change", (event) => {
    state.hide = event.target.checked;
    paintThumbs();
    choose({});
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && release());
  scheme.addEventListener("change", () => { paintScheme(); paintThumbs(); choose({}); });
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => choose({}), 100);
  });
  listenToTokens(byId("from-text"));
  listenToTokens(byId("to-text"));
  listenToThumbs();
  listenToMatrix();
}

function paintScheme() {
  const stops = RAMPS[scheme.matches ? "dark" : "light"];
  colours = { from: ramp(stops.from), to: ramp(stops.to) };
  const legend = byId("legend").querySelector("canvas").getContext("2d");
  const pixels = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) pixels.data.set([...colours.from[i], 255], 4 * i);
  legend.putImageData(pixels, 0, 0);
}

function openMap(index) {
  const map = maps[index];
  const found = index === lookedAt() && data.look_first;
  const layer = found ? map.layers.indexOf(found.layer) : map.layers.length - 1;
  Object.assign(state, { map: index, layer, head: found ? found.head : MEAN, kept: false, pair: null });
  // A decoder's last token says what comes next; elsewhere one in the middle shows most.
  const start = map.causal ? map.K - 1 : Math.floor(map.K / 2);
  Object.assign(state, { k: start, q: map.square ? start - map.offset : Math.floor(map.Q / 2) });
  fillChoices();
  buildThumbs();
  buildText(byId("from-text"), map.keys, "k");
  buildText(byId("to-text"), map.queries, "q");
  paintThumbs();
  choose({});
}

async function start() {
  maps = await Promise.all(data.maps.map(read));
  paintScheme();
  writeFacts();
  writeHint();
  listen();
  openMap(lookedAt());
  document.documentElement.dataset.ready = "true";
}

start();
