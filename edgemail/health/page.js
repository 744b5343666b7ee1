"use strict";
const $ = (id) => document.getElementById(id);
// Everything shown goes through text nodes: mail addresses and replies are the outside's words.
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "text", "line", "title", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
function put(id, ...nodes) { $(id).replaceChildren(...nodes); }
function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}
function table(heads, rows, caption) {
  const head = el("tr", {}, ...heads.map((h) => el("th", { scope: "col", class: h.startsWith("#") ? "n" : "" }, h.replace("#", ""))));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, i) => el("td", { class: heads[i].startsWith("#") ? "n" : "" }, cell))));
  return el("table", { "aria-label": caption }, el("thead", {}, head), el("tbody", {}, ...body));
}
const word = (state) => el("span", { class: "state " + state }, state);
// Columns of values, drawn upwards; what stands in `below` is drawn downwards from the same line.
function bars(place, columns, below, labels, title, colours) {
  const width = Math.max(240, $(place).clientWidth || 600), step = width / columns.length, sum = (c) => c.reduce((a, b) => a + b, 0);
  const most = Math.max(1, ...columns.map(sum)), least = Math.max(below.length ? 1 : 0, ...below.map(sum));
  const scale = 84 / Math.max(most, least), base = 18 + most * scale, height = base + least * scale + 22;
  const picture = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
  const draw = (column, i, sign, tints) => {
    let y = base;
    column.forEach((value, k) => {
      if (!value) return;
      const h = Math.max(2, value * scale);
      picture.append(el("rect", { x: i * step + step * 0.1, y: sign > 0 ? y - h : y, width: Math.max(2, step * 0.8), height: h,
        fill: tints[k] }, el("title", {}, `${labels[i] || ""} ${value}`)));
      y -= sign * h;
    });
  };
  columns.forEach((column, i) => draw(column, i, 1, colours[0]));
  below.forEach((column, i) => draw(column, i, -1, colours[1]));
  picture.append(el("line", { x1: 0, x2: width, y1: base, y2: base, stroke: "var(--soft)" }));
  const shown = labels.map((label, i) => [label, i]).filter(([label]) => label), every = Math.ceil(shown.length / (width / 56));
  shown.forEach(([label, i], n) => { if (n % every === 0) picture.append(el("text", { x: i * step + step / 2, y: height - 4,
    "text-anchor": i ? "middle" : "start" }, label)); });
  picture.append(el("text", { x: 0, y: 12 }, `up to ${most}`));
  return picture;
}
function says(name, c) {
  if (c.message) return c.message;
  if (c.address) return c.address;
  if (c.days_left !== undefined) return `${c.days_left} days left`;
  if (c.taken) return `${c.user} was let in ${span(c.tried)} ago`;
  if (c.mode) return `a file of mode ${c.mode}`;
  if (name === "ptr") return Object.entries(c).filter(([n]) => /[.:]/.test(n)).map((pair) => pair.join(" is ")).join(", ");
  if (name === "queue") return c.depth ? `${c.depth} waiting, the oldest for ${span(c.oldest_age)}` : "empty";
  return "well";
}
const REASONS = { active: "being sent", incoming: "not tried yet", hold: "held by hand", deferred: "no reason is known" };
const narrow = () => document.documentElement.clientWidth < 480;
function queue(causes) {
  const rows = causes.map((g) => [g.destination, g.messages, span(g.oldest),
    g.next === null ? "when released" : g.state === "active" || g.next <= 0 ? "now" : "in " + span(g.next)]);
  const why = causes.map((g) => g.reason || REASONS[g.state] || "");
  if (!narrow()) return explain(table(["mail for", "#messages", "#oldest", "#next try"], rows, "queue by cause"), why);
  const found = explain(table(["#messages", "#oldest", "#next try"], rows.map((row) => row.slice(1)), "queue by cause"), why);
  [...found.tBodies[0].rows].filter((row) => row.className !== "why").forEach((row, i) => {
    row.before(el("tr", {}, el("td", { colspan: 3 }, causes[i].destination)));
    row.className = "why";
  });
  return found;
}
// A sentence below each row, over its whole width.
function explain(found, sentences) {
  [...found.tBodies[0].rows].forEach((row, i) => sentences[i] && row.after(el("tr", { class: "why" },
    el("td", { colspan: row.cells.length, class: "soft" }, sentences[i]))));
  return found;
}
function components(parts) {
  if (!narrow()) return table(["component", "state", "says"], parts.map(([n, c]) => [n, word(c.state), says(n, c)]), "components");
  return explain(table(["component", "#state"], parts.map(([n, c]) => [n, word(c.state)]), "components"), parts.map(([n, c]) => says(n, c)));
}
function show(d) {
  const s = d.status, now = d.now;
  $("name").textContent = d.myhostname;
  document.title = `${s.state}: ${d.myhostname}`;
  $("head").className = "wide " + s.state;
  $("state").textContent = s.state === "ok" ? "all is well" : s.state;
  $("state").className = "state " + s.state;
  $("sentence").textContent = s.message || d.sentence;
  $("since").textContent = `since ${s.since.replace("T", " ").replace("Z", " UTC")} · edgemail ${d.version}`;
  put("queue", d.queue.length ? queue(d.queue) : el("p", { class: "soft" }, "The queue is empty."));
  put("shape", ...(d.queue.length ? [el("p", { class: "soft" }, "Recipients by age in minutes"),
    bars("shape", d.shape.map((n) => [n]), [], d.shape_labels.map((l) => (l.endsWith("+") ? l : "<" + l)),
      "recipients in the queue by age in minutes", [["var(--blue)"]])] : []));
  const parts = Object.entries(s.components), starts = (p) => parts.filter(([n]) => n.startsWith(p));
  const routes = [...starts("route."), ...starts("link.")];
  put("routes", routes.length ? explain(table(["route", "#state"], routes.map(([n, c]) => [n.replace(/^route\./, ""),
    word(c.state)]), "routes and links"), routes.map(([, c]) => c.message))
    : el("p", { class: "soft" }, "No mail has been sent anywhere yet."));
  put("guards", ...starts("guard.").map(([n, c]) => {
    const value = Math.min(1, c.measured ?? 0), name = n.slice(6);
    return el("div", { class: "gauge" }, el("span", {}, name), el("meter", { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0,
      value, "aria-label": name }), el("span", { class: c.state }, `${Math.round(value * 100)} %`));
  }));
  const slots = Array.from({ length: 96 }, () => [0, 0, 0]);
  for (const [ago, came, went, lost] of d.traffic) {
    const at = slots[95 - Math.floor(ago / 3)];
    if (at) { at[0] += came; at[1] += went; at[2] += lost; }
  }
  put("traffic", bars("traffic", slots.map((s) => [s[0]]), slots.map((s) => s.slice(1)), slots.map((_, i) => (i % 8 === 4 ? `-${24 - i / 4} h` : "")),
    "messages taken in, recipients sent and bounced, by quarter hour", [["var(--blue)"], ["var(--well)", "var(--bad)"]]),
    el("p", { class: "soft" }, "upwards: taken in · downwards, green: sent · red: bounced"));
  $("release").hidden = !d.status.components.appliance;
  const rest = parts.filter(([n]) => !/^(route|link|guard)\./.test(n));
  put("components", components(rest));
  put("recent", d.recent.length ? table(["#age", "message"], d.recent.map((m) => [span(now - m.at), el("div", {},
    el("div", {}, m.from || "<>", " ", el("span", { class: "fate " + m.fate }, m.fate), " ", el("span", { class: "soft" }, m.id)),
    ...m.to.map((t) => el("div", { class: "soft" }, `${t.address}: ${t.text}`)))]), "the last messages")
    : el("p", { class: "soft" }, "No message has come since the start."));
}
let timer;
function refresh() { clearTimeout(timer); timer = setTimeout(poll, 300); }
async function poll() {
  try {
    const answer = await fetch("/page.json", { cache: "no-store" });
    show(await answer.json());
  } catch (error) {
    $("state").textContent = "no answer";
    $("state").className = "state failed";
    $("sentence").textContent = "The box does not answer: it is off, restarting, or the network between is down.";
  }
  clearTimeout(timer);
  timer = setTimeout(poll, document.hidden ? 30000 : 3000);
}
async function act(verb, request) {
  const answer = await fetch("/queue/" + verb, { method: "POST", headers: { Authorization: "Bearer " + $("token").value,
    "Content-Type": "application/json" }, body: JSON.stringify(request) });
  const text = await answer.text();
  return answer.ok ? JSON.parse(text) : { error: answer.status === 401 ? "The token is missing or wrong." : text };
}
const DONE = { flush: "will be tried now", hold: "held", release: "released", delete: "deleted" };
for (const verb of Object.keys(DONE)) {
  const button = el("button", { type: "button", id: "do-" + verb }, verb);
  button.addEventListener("click", async () => {
    const id = $("which").value.trim();
    if (verb === "delete" && !confirm(`Delete ${id || "all mail in the queue"}? Nobody is told.`)) return;
    $("result").textContent = "…";
    const done = await act(verb, { id });
    $("result").textContent = done.error || `${done.count} message${done.count === 1 ? "" : "s"} ${DONE[verb]}.`;
    refresh();
  });
  $("verbs").append(button);
}
$("do-test").addEventListener("click", async () => {
  $("result").textContent = "…";
  const done = await act("test", { to: $("to").value.trim() });
  if (done.error) { $("result").textContent = done.error; return; }
  for (let n = 0; n < 120; n++) {
    const { lines, error } = await act("conversation", { id: done.id });
    $("result").textContent = `${done.id} to ${done.to}\n` + (error || lines.join("\n") || "waiting for its turn…");
    if (error || lines.some((line) => line.startsWith("to=<"))) break;
    await new Promise((go) => setTimeout(go, 500));
  }
  refresh();
});
$("do-install").addEventListener("click", async () => {
  const [file] = $("bundle").files;
  if (!file || !confirm(`Install ${file.name}? The box restarts when it is written and checked.`)) return;
  $("result").textContent = "…";
  try {
    const answer = await fetch("/update", { method: "POST", headers: { Authorization: "Bearer " + $("token").value }, body: file });
    if (!answer.ok) { $("result").textContent = answer.status === 401 ? "The token is missing or wrong." : await answer.text(); return; }
    for (let n = 0; n < 600; n++) {
      const { state, percent, message } = await (await fetch("/update", { cache: "no-store" })).json();
      $("result").textContent = [state, percent === undefined ? "" : percent + " %", message].filter(Boolean).join(" ");
      if (state === "failed") break;
      await new Promise((go) => setTimeout(go, 1000));
    }
  } catch (error) { $("result").textContent = "The box does not answer: it restarts, or it has hung up."; }
});
poll();
