"use strict";
// One page: a conversation with one model or two, and the experts that wrote each token.

const $ = (id) => document.getElementById(id);
const state = { models: [], turns: [], answers: [], stopper: null, loads: {}, engine: {} };

function element(tag, properties = {}, ...children) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
}

const hue = (expert) => `${(expert * 137.508 + 25) % 360}`; // neighbours in number lie far apart in colour
const visible = (text) => text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
const bytes = (count) => count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(1)} MiB`;
const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

const WORDS = { 413: "the request is too large for the server.", 429: "too many answers are under way; try again in a moment.",
  502: "what stands before the server cannot reach it.", 503: "the server takes on no more just now; try again in a moment." };

async function ask(path, body, signal) {
  const options = { headers: headers(), signal, ...(body ? { method: "POST", body: JSON.stringify(body) } : {}) };
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is it still running?");
  });
  if (response.ok) return response;
  if (response.status === 401) askForKey();
  let message = WORDS[response.status] ?? `the server answered ${response.status}.`;
  try { message = (await response.json()).error.message; } catch { /* not in our words: the status must do */ }
  throw new Error(message);
}

function askForKey() {
  $("key-label").hidden = false;
  $("key").focus();
}

// --- the stream ---

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream broke off.");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a ping
      const data = part.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function request(model, text, side) {
  const label = $("label").value.trim();
  const body = { model: model.id, stream: true, stream_options: { include_usage: true }, return_experts: true,
    max_tokens: Number($("most").value) || 128, temperature: Number($("temperature").value), ...(label ? { label } : {}) };
  const tools = toolsGiven();
  if (!model.chat) {
    if (tools) throw new Error("this model has no chat template, so that it cannot call tools; leave them out.");
    return ["v1/completions", { ...body, prompt: text }];
  }
  const messages = state.turns.flatMap((turn) => [...asked(turn, side), ...(turn.answers[side] ? [turn.answers[side]] : [])]);
  return ["v1/chat/completions", { ...body, messages, ...(tools ? { tools } : {}) }];
}

// What the user said: the words of tools where the answer before called some, a message else.
function asked(turn, side) {
  const before = state.turns[state.turns.indexOf(turn) - 1]?.answers[side]?.tool_calls ?? [];
  if (!before.length) return [{ role: "user", content: turn.text }];
  return before.map((call) => ({ role: "tool", tool_call_id: call.id, content: turn.text }));
}

function toolsGiven() {
  const text = $("tools").value.trim();
  if (!text) return null;
  let tools;
  try { tools = JSON.parse(text); } catch (error) { throw new Error(`the tools are no JSON: ${error.message}`); }
  if (!Array.isArray(tools)) throw new Error("the tools are no list; put them between [ and ].");
  return tools;
}

async function answer(model, text, side, turn, place, signal) {
  const shown = new Answer(model, place);
  try {
    const [path, body] = request(model, text, side);
    for await (const chunk of events(await ask(path, body, signal))) {
      for (const choice of chunk.choices) {
        shown.add(choice.delta ? choice.delta.content ?? "" : choice.text ?? "", choice.experts ?? []);
        for (const call of choice.delta?.tool_calls ?? []) shown.call(call);
      }
      if (chunk.timings) shown.end(chunk.usage, chunk.timings);
    }
  } catch (error) {
    shown.fail(error.name === "AbortError" ? "stopped." : error.message);
  }
  turn.answers[side] = shown.message();
  shown.settle();
  return shown;
}

// --- one answer ---

class Answer {
  constructor(model, place) {
    Object.assign(this, { model, said: "", calls: [], tokens: [], at: -1, only: null });
    this.text = element("div", { className: "text" });
    this.facts = element("p", { className: "facts" });
    this.box = element("article", {}, element("h3", { textContent: model.id }), this.text, this.facts);
    this.box.setAttribute("aria-busy", "true");
    place.append(this.box);
  }

  add(text, tokens) {
    this.said += text;
    this.text.append(text);
    this.tokens.push(...tokens);
    if (tokens.some((token) => token.layers.some(Boolean))) this.showTokens(tokens);
  }

  // A call of a tool: its name, its arguments one a line, and a button that copies both.
  call({ id, function: { name, arguments: given } }) {
    this.calls.push({ id, type: "function", function: { name, arguments: given } });
    const copy = element("button", { type: "button", textContent: "Copy" });
    copy.setAttribute("aria-label", `Copy the call of ${name}`);
    copy.onclick = () => copied(copy, JSON.stringify({ name, arguments: parsed(given) ?? given }, null, 2));
    const box = element("section", { className: "call" }, element("h4", {}, `calls ${name}`, copy), argumentsOf(given));
    box.setAttribute("aria-label", `Call of the tool ${name}`);
    this.facts.before(box);
  }

  message() {
    if (!this.said && !this.calls.length) return null;
    const calls = this.calls.length ? { tool_calls: this.calls } : {};
    return { role: "assistant", content: this.said, ...calls };
  }

  showTokens(tokens) {
    if (!this.list) this.openTokens();
    for (const token of tokens) this.list.append(this.span(token));
  }

  openTokens() {
    this.layer = element("select");
    fillLayers(this.layer, this.tokens[0].layers.map((experts) => experts !== null));
    if ([...this.layer.options].some((option) => option.value === $("layer").value)) this.layer.value = $("layer").value;
    this.layer.onchange = () => this.colour();
    this.list = element("div", { className: "tokens", tabIndex: 0 });
    this.list.setAttribute("role", "group");
    this.list.setAttribute("aria-label", "Tokens by expert; arrow keys go from token to token");
    this.readout = element("p", { className: "readout", textContent: "Point at a token, or go through them with the arrow keys." });
    this.readout.setAttribute("aria-live", "polite");
    this.list.onkeydown = (event) => this.move(event);
    this.list.onmouseover = (event) => this.point([...this.list.children].indexOf(event.target));
    this.list.onclick = (event) => this.highlight([...this.list.children].indexOf(event.target));
    const tools = element("div", { className: "tools" }, element("label", {}, "Layer ", this.layer));
    const details = element("details", { open: true }, element("summary", { textContent: "Tokens by expert" }), tools, this.list, this.readout);
    this.box.append(details);
  }

  span(token) {
    const found = element("span", { textContent: visible(token.token) });
    this.paint(found, token);
    return found;
  }

  experts(token) { return token.layers[Number(this.layer.value)]; }

  paint(span, token) {
    const experts = this.experts(token);
    span.classList.toggle("none", !experts?.length);
    span.classList.toggle("faint", this.only !== null && !experts?.includes(this.only));
    if (experts?.length) span.style.setProperty("--hue", hue(experts[0]));
  }

  colour() {
    [...this.list.children].forEach((span, index) => this.paint(span, this.tokens[index]));
    this.point(this.at);
  }

  point(index) {
    if (index < 0 || index >= this.tokens.length) return;
    this.list.children[this.at]?.classList.remove("at");
    this.at = index;
    this.list.children[index].classList.add("at");
    const experts = this.experts(this.tokens[index]);
    const told = experts?.length ? `expert${experts.length > 1 ? "s" : ""} ${experts.join(", ")}` : "no expert";
    this.readout.textContent = `Token ${index + 1}, “${this.tokens[index].token}”: ${told} in layer ${this.layer.value}`;
  }

  highlight(index) {
    if (index < 0) return;
    const first = this.experts(this.tokens[index])?.[0] ?? null;
    this.only = this.only === first ? null : first;
    this.colour();
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -1e9, End: 1e9 };
    if (event.key === "Enter") return this.highlight(this.at);
    if (!(event.key in steps)) return undefined;
    event.preventDefault();
    this.point(Math.min(this.tokens.length - 1, Math.max(0, this.at + steps[event.key])));
    return this.list.children[this.at]?.scrollIntoView({ block: "nearest" });
  }

  end(usage, timings) {
    const rate = timings.predicted_per_second ? ` · ${timings.predicted_per_second.toFixed(1)} tokens/s` : "";
    const lost = usage.dropped_tokens ? ` · ${usage.dropped_tokens} positions out of sight` : "";
    this.told = `${usage.completion_tokens} tokens${rate} · first after ${timings.prompt_ms.toFixed(0)} ms${lost}`;
    this.facts.textContent = this.told;
  }

  fail(message) {
    this.told = message;
    this.facts.textContent = message;
    this.facts.classList.add("error");
  }

  settle() {
    this.box.setAttribute("aria-busy", "false");
    if (!this.said && !this.calls.length && !this.told) this.facts.textContent = "an empty answer.";
  }
}

// --- calls of tools ---

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

function argumentsOf(given) {
  const values = parsed(given);
  if (values === null || typeof values !== "object" || Array.isArray(values)) return element("pre", { textContent: given });
  const entries = Object.entries(values);
  if (!entries.length) return element("pre", { textContent: "no arguments" });
  const told = (value) => typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return element("dl", {}, ...entries.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: told(value) })]));
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("The call is copied.");
  } catch {
    say("The browser does not let this page copy; mark the text instead.", true);
  }
}

// --- beside the conversation ---

function fillLayers(select, told) {
  const kept = select.value;
  const layers = told.flatMap((tells, index) => tells ? [index] : []);
  select.replaceChildren(...layers.map((index) => element("option", { value: index, textContent: index })));
  if (layers.includes(Number(kept)) && kept !== "") select.value = kept;
}

async function refresh() {
  const model = chosen();
  if (!model) return;
  const found = await (await ask(`v1/experts?model=${encodeURIComponent(model.id)}`)).json();
  Object.assign(state, { loads: found.loads, engine: found.engine, memory: found.memory });
  showFacts();
  showMixture();
}

function showFacts() {
  const { engine, memory } = state;
  const rows = [["Answering", `${engine.running}, waiting ${engine.waiting}`], ["Tokens written", engine.generated_tokens],
    ["Weights", bytes(memory.weights_bytes)]];
  if (engine.cache_bytes) rows.push(["Keys and values", `${bytes(engine.cache_used_bytes)} of ${bytes(engine.cache_bytes)}`]);
  if (memory.resident_bytes) rows.push(["Server's memory", bytes(memory.resident_bytes)]);
  $("facts").replaceChildren(...rows.flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

function showMixture() {
  const layers = state.loads[""] ?? [];
  const known = layers.map((counts) => counts !== null);
  $("mixture").hidden = !known.includes(true);
  $("dense").hidden = state.engine.steps === 0 || known.includes(true);
  fillLayers($("layer"), known);
  const label = $("loads-label").value;
  const names = Object.keys(state.loads);
  $("loads-label").replaceChildren(...names.map((name) => element("option", { value: name, textContent: name || "all" })));
  $("loads-label").value = names.includes(label) ? label : "";
  showLoad();
  showTends();
}

function showLoad() {
  const counts = state.loads[$("loads-label").value]?.[Number($("layer").value)] ?? [];
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  const most = Math.max(...counts, 1);
  $("even").textContent = counts.length ? `${(100 / counts.length).toFixed(1)} %` : "";
  $("load").replaceChildren(...counts.map((count, expert) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * count / most}%`;
    bar.style.setProperty("--hue", hue(expert));
    const head = element("th", { scope: "row", textContent: expert });
    return element("tr", {}, head, element("td", { textContent: `${(100 * count / total).toFixed(1)} %` }),
      element("td", { className: "fill" }, bar));
  }));
}

function showTends() {
  const layer = Number($("layer").value);
  const model = chosen()?.id;
  const own = new Map(), all = new Map();
  let total = 0;
  for (const token of state.answers.filter((one) => one.model.id === model).flatMap((one) => one.tokens)) {
    for (const expert of token.layers[layer] ?? []) {
      if (!own.has(expert)) own.set(expert, new Map());
      own.get(expert).set(token.token, (own.get(expert).get(token.token) ?? 0) + 1);
      all.set(token.token, (all.get(token.token) ?? 0) + 1);
      total += 1;
    }
  }
  const rows = [...own.keys()].sort((a, b) => a - b).map((expert) => {
    const counts = [...own.get(expert)];
    const sum = counts.reduce((found, [, count]) => found + count, 0);
    const excess = ([text, count]) => count - sum * all.get(text) / total; // beyond what its share would bring
    const best = counts.filter((entry) => excess(entry) > 0).sort((a, b) => excess(b) - excess(a)).slice(0, 6);
    const words = best.map(([text]) => element("b", { textContent: visible(text).replace(/\n/g, "") }));
    const head = element("th", { scope: "row", textContent: expert });
    return element("tr", {}, head, element("td", { className: "words" }, ...words));
  });
  $("tends").replaceChildren(...rows);
}

// --- controls ---

const chosen = () => state.models.find((model) => model.id === $("model").value);

async function begin() {
  try {
    state.models = (await (await ask("v1/models")).json()).data;
    const options = () => state.models.map((model) => element("option", { value: model.id, textContent: model.id }));
    $("model").replaceChildren(...options());
    $("beside").replaceChildren(element("option", { value: "", textContent: "none" }), ...options());
    $("beside-label").hidden = state.models.length < 2;
    suit();
    await refresh();
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function suit() {
  const model = chosen();
  $("ask-label").textContent = model?.chat === false ? "A text for the model to go on with" : "Your message";
}

function say(message, wrong = false) {
  $("status").textContent = message;
  $("status").classList.toggle("error", wrong);
}

async function send(event) {
  event?.preventDefault();
  const text = $("ask").value;
  if (!text.trim() || state.stopper) return;
  if (!chosen()) { await begin(); if (!chosen()) return; }
  const models = [chosen(), ...state.models.filter((model) => model.id === $("beside").value)];
  const turn = { text, answers: [] };
  state.turns.push(turn);
  state.stopper = new AbortController();
  busy(true);
  const place = element("div", { className: "answers" });
  $("log").append(element("div", { className: "asked", textContent: text }), place);
  $("ask").value = "";
  place.scrollIntoView({ block: "nearest" });
  const done = await Promise.all(models.map((model, side) => answer(model, text, side, turn, place, state.stopper.signal)));
  if (state.turns.includes(turn)) state.answers.push(...done);
  state.stopper = null;
  busy(false);
  say(done.map((one) => `${one.model.id}: ${one.told ?? "done"}`).join("; "));
  refresh().catch((error) => say(error.message, true));
}

function busy(yes) {
  $("send").disabled = yes;
  $("stop").disabled = !yes;
  if (yes) say("The model is answering.");
}

function anew() {
  state.stopper?.abort();
  state.turns = [];
  state.answers = [];
  showTends();
  $("log").replaceChildren();
  say("A new conversation.");
  $("ask").focus();
}

$("form").onsubmit = send;
$("stop").onclick = () => state.stopper?.abort();
$("anew").onclick = anew;
$("ask").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); };
$("model").onchange = () => { suit(); refresh().catch((error) => say(error.message, true)); };
$("layer").onchange = () => { showLoad(); showTends(); };
$("loads-label").onchange = showLoad;
$("key").onchange = begin;
begin();
