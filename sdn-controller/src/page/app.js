"use strict";
// Everything shown comes from the REST interface; everything is put in as text, never as markup.
const $ = (id) => document.getElementById(id);
const state = { rates: new Map(), pending: null, timer: null };

// Paths count from where the page is: behind a proxy that may be below some other path.
function send(path, options = {}) {
  const token = sessionStorage.getItem("token"), headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  return fetch(path.slice(1), { ...options, headers });
}

// Numbers of switches and cookies may have 64 bits: those that would lose some stay the digits that they came as.
const read = (text) => JSON.parse(text, (key, value, context) =>
  (typeof value === "number" && context?.source && Math.abs(value) > Number.MAX_SAFE_INTEGER ? context.source : value));

async function ask(path, options) {
  const answer = await send(path, options);
  if (answer.status === 401) {
    $("login").hidden = false;
    if (!$("login").contains(document.activeElement)) $("login").elements.token.focus();
  }
  const body = await answer.text().then(read).catch(() => ({}));
  if (!answer.ok) {
    const errors = (body.errors || []).map((e) => `${e.field} ${e.value}: ${e.detail}; ${e.remedy}`);
    throw new Error([body.title, body.detail, ...errors].filter(Boolean).join("\n") || `HTTP ${answer.status}`);
  }
  return body;
}

function cell(value, kind) {
  const td = document.createElement("td");
  td.textContent = value ?? "";
  if (kind) td.className = kind;
  return td;
}

function fill(table, rows) {
  const body = $(table).tBodies[0];
  body.replaceChildren(...rows.map((row) => {
    const tr = document.createElement("tr");
    tr.append(...row.map((c) => (Array.isArray(c) ? cell(c[0], c[1]) : cell(c))));
    return tr;
  }));
}

const status = (text) => [text, text === "applied" || text === "settled" || text === "up" || text === "pass" ? "good" : "bad"];
const number = (n) => [n === undefined || n === null ? "" : n.toLocaleString("en"), "number"];

function draw(topology) {
  const svg = $("drawing"), places = new Map(), make = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const count = topology.switches.length;
  topology.switches.forEach((s, i) => {
    const angle = (2 * Math.PI * i) / Math.max(count, 1) - Math.PI / 2;
    places.set(s.dpid, count === 1 ? [400, 160] : [400 + 300 * Math.cos(angle), 160 + 115 * Math.sin(angle)]);
  });
  const parts = [];
  // What probes show goes below what is wanted: where both are, the wanted one is seen.
  for (const link of topology.discovered) {
    const a = places.get(link.a.dpid), b = places.get(link.b.dpid);
    if (!a || !b) continue;
    const line = make("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: "found" });
    line.append(make("title", {}, `${link.a.dpid}:${link.a.port} to ${link.b.dpid}:${link.b.port}, found by probes`));
    parts.push(line);
  }
  for (const link of topology.links) {
    const a = places.get(link.a.dpid), b = link.b ? places.get(link.b.dpid) : a && [a[0], a[1] - 60];
    if (!a || !b) continue;
    const line = make("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: link.up ? "up" : "down" });
    line.append(make("title", {}, `${link.name}: ${link.up ? "up" : "down"}`));
    parts.push(line, make("text", { x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 - 6 }, link.name));
  }
  for (const s of topology.switches) {
    const [x, y] = places.get(s.dpid);
    parts.push(make("rect", { x: x - 55, y: y - 20, width: 110, height: 40, rx: 5, class: s.connected ? "" : "absent" }),
      make("text", { x, y: y + 5 }, `switch ${s.dpid}`));
  }
  svg.replaceChildren(...parts);
}

async function showTopology() {
  const [topology, list] = await Promise.all([ask("/v1/topology"), ask("/v1/switches")]);
  draw(topology);
  const end = (e) => (e ? `${e.dpid}:${e.name || e.port}` : "outside");
  const wanted = topology.links.map((l) => [l.name, end(l.a), end(l.b), status(l.up ? "up" : "down"),
    l.seen === null ? "" : status(l.seen ? "pass" : "do not pass")]);
  const found = topology.discovered.map((l) => ["", end(l.a), end(l.b), "", status(l.both_ways ? "pass" : "pass one way")]);
  fill("links", [...wanted, ...found]);
  fill("switches", list.switches.map((s) => [s.dpid, status(!s.connected ? "absent" : s.settled ? "settled" : "busy"),
    s.address, s.software, number(s.ports), number(s.flows), number(s.meters)]));
  options("switch-numbers", list.switches.map((s) => s.dpid));
  const rows = [];
  for (const s of list.switches.filter((x) => x.connected)) {
    const [ports, counters] = await Promise.all([
      ask(`/v1/switches/${s.dpid}/ports`), ask(`/v1/switches/${s.dpid}/port-stats`).catch(() => ({ ports: [] }))]);
    const of = new Map(counters.ports.map((p) => [p.port, p]));
    for (const port of ports.ports) {
      const c = of.get(port.port), key = `${s.dpid}/${port.port}`, now = performance.now(), old = state.rates.get(key);
      const rate = (name) => c && old ? Math.max(0, Math.round((c[name] - old[name]) * 8 / (now - old.now))) : undefined;
      rows.push([s.dpid, port.port, port.name, status(port.shut ? `shut: ${port.shut}` : port.up ? "up" : "down"), number(rate("rx_bytes")),
        number(rate("tx_bytes")), number(c?.rx_packets), number(c?.tx_packets), number(c && c.rx_dropped + c.tx_dropped)]);
      if (c) state.rates.set(key, { now, rx_bytes: c.rx_bytes, tx_bytes: c.tx_bytes });
    }
  }
  fill("ports", rows);
}

function options(list, values) {
  $(list).replaceChildren(...values.map((value) => {
    const option = document.createElement("option");
    option.value = option.textContent = value;
    return option;
  }));
}

async function showNetworks() {
  const [networks, attachments, counters] = await Promise.all([ask("/v1/networks"), ask("/v1/attachments"), ask("/v1/counters")]);
  fill("network-list", networks.networks.map((n) => [n.name, n.vlan, n.tenant, status(n.status),
    n.ports.map((p) => `${p.dpid}:${p.port} ${p.mode}`).join(", ")]));
  fill("attachment-list", attachments.attachments.map((a) => [a.name, a.network, a.dpid, a.port, a.mode,
    [...(a.macs || []), ...(a.ips || [])].join(" "), (a.acls || []).join(" "),
    number(counters.attachments[a.name]?.spoofed_packets), status(a.status)]));
}

async function showFlows() {
  const list = await ask("/v1/switches"), select = $("flow-switch"), chosen = select.value;
  const numbers = list.switches.filter((s) => s.connected).map((s) => String(s.dpid));
  options("flow-switch", numbers);
  if (numbers.includes(chosen)) select.value = chosen;
  if (!select.value) return fill("flow-list", []);
  const { entries } = await ask(`/v1/switches/${select.value}/entries?all=true`);
  const words = $("flow-search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = entries.map((e) => {
    const match = Object.entries(e.match).map(([k, v]) => `${k}=${v}`).join(" ");
    const does = JSON.stringify(e.instructions || e.actions).replaceAll('"', "");
    const of = Object.values(e.of).join(" ");
    return { text: `table=${e.table} priority=${e.priority} ${match} ${does} ${of}`.toLowerCase(),
      row: [e.table, e.priority, [match || "anything", "code"], [does === "[]" ? "drop" : does, "code"], of,
        number(e.packets), number(e.bytes)] };
  }).filter((r) => words.every((word) => r.text.includes(word)));
  $("flow-count").textContent = `${rows.length} of ${entries.length}`;
  fill("flow-list", rows.map((r) => r.row));
}

async function showAcls() {
  const [acls, counters] = await Promise.all([ask("/v1/acls"), ask("/v1/counters")]);
  const rows = [];
  for (const acl of acls.acls) {
    const hits = counters.acls[acl.name] || { rules: [], default: {} };
    acl.rules.forEach((rule, i) => {
      const { direction, action, ...rest } = rule;
      const packets = Object.entries(rest).map(([k, v]) => `${k} ${v}`).join(", ");
      rows.push([acl.name, direction, packets || "anything", action, number(hits.rules[i]?.packets)]);
    });
    rows.push([acl.name, "", "anything else", `in ${acl.default.ingress}, out ${acl.default.egress}`, number(hits.default.packets)]);
  }
  fill("acl-list", rows);
}

async function showAddresses() {
  const { addresses } = await ask("/v1/addresses");
  fill("address-list", addresses.map((a) => [a.mac, a.network, a.vlan, a.dpid, a.port_name || a.port, number(a.seconds)]));
}

async function showNew() {
  options("network-names", (await ask("/v1/networks")).networks.map((n) => n.name));
}

async function showLog() {
  const { records } = await ask("/v1/audit?limit=50");
  fill("audit", records.map((r) => [new Date(r.time_ms).toLocaleString(), r.who, `${r.action} ${r.kind} ${r.name}`]));
}

const views = { topology: showTopology, networks: showNetworks, flows: showFlows, acls: showAcls,
  addresses: showAddresses, new: showNew, log: showLog };

const wanted = () => (location.hash.slice(1) in views ? location.hash.slice(1) : "topology");

async function refresh() {
  const view = wanted();
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  try {
    await views[view]();
    $("state").textContent = "connected";
  } catch (error) {
    $("state").textContent = error.message;
  }
  // Answers may come when another view is wanted already.
  if (view === wanted()) document.body.dataset.view = view;
}

function previewText(preview) {
  const lines = [...preview.changes];
  for (const s of preview.switches) {
    lines.push(`switch ${s.dpid}${s.connected ? "" : " (not connected; it gets this when it is)"}:`);
    for (const meter of s.meters) lines.push(`  set-meter ${JSON.stringify(meter)}`);
    for (const flow of s.add) lines.push(`  add-flow ${JSON.stringify(flow)}`);
    for (const flow of s.delete) lines.push(`  del-flow ${JSON.stringify(flow)}`);
    for (const text of s.obstacles) lines.push(`  but: ${text}`);
  }
  return lines.join("\n") || "nothing";
}

async function propose(path, body) {
  const put = (dry) => ask(`${path}?dry_run=${dry}`, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  $("outcome").textContent = "";
  try {
    $("preview-text").textContent = previewText(await put(true));
    state.pending = () => put(false);
    $("preview").hidden = false;
    $("confirm").focus();
  } catch (error) {
    $("preview").hidden = true;
    $("outcome").textContent = error.message;
  }
}

const list = (text) => text.split(/[\s,]+/).filter(Boolean);
const port = (text) => (/^\d+$/.test(text) ? Number(text) : text);

$("network-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData(event.target), vlan = data.get("vlan").trim();
  propose(`/v1/networks/${encodeURIComponent(data.get("name"))}`, vlan ? { vlan: port(vlan) } : {});
});
$("attachment-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const data = new FormData(event.target), text = (key) => data.get(key).trim();
  propose(`/v1/attachments/${encodeURIComponent(text("name"))}`, { network: text("network"), dpid: text("dpid"),
    port: port(text("port")), mode: text("mode"), macs: list(text("macs")), ips: list(text("ips")) });
});
$("confirm").addEventListener("click", async () => {
  $("preview").hidden = true;
  try {
    const done = await state.pending();
    const waits = (done.switches || []).flatMap((s) => s.reasons || []);
    $("outcome").textContent = [`${done.name}: ${done.status}`, ...waits].join("\n");
    await showNew();
  } catch (error) {
    $("outcome").textContent = error.message;
  }
});
$("cancel").addEventListener("click", () => { $("preview").hidden = true; });
$("flow-refresh").addEventListener("click", refresh);
$("flow-search").addEventListener("input", () => { clearTimeout(state.timer); state.timer = setTimeout(refresh, 200); });
$("flow-switch").addEventListener("change", refresh);
addEventListener("hashchange", refresh);

function note(type, text) {
  const item = document.createElement("li");
  item.textContent = `${type} ${text}`;
  $("events").prepend(item);
  while ($("events").children.length > 200) $("events").lastChild.remove();
  if (document.body.dataset.view !== "new") refresh();
}

// What EventSource does, which cannot show a token.
async function listen() {
  const pause = () => new Promise((again) => { state.listenAgain = again; setTimeout(again, 2000); });
  for (let last = ""; ; await pause()) {
    try {
      const answer = await send("/v1/events", last ? { headers: { "last-event-id": last } } : {});
      if (!answer.ok) continue;
      document.body.dataset.events = "open";
      // What happened before is not told.
      refresh();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (text + value).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const fields = new Map(event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]));
          last = fields.get("id") || last;
          if (fields.has("event")) note(fields.get("event"), fields.get("data"));
        }
      }
    } catch { /* It is tried again. */ }
    delete document.body.dataset.events;
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", new FormData(event.target).get("token").trim());
  event.target.reset();
  event.target.hidden = true;
  state.listenAgain?.();
  refresh();
});

refresh();
listen();
setInterval(() => { if (!document.hidden && ["topology", "acls", "addresses"].includes(document.body.dataset.view)) refresh(); }, 2000);
