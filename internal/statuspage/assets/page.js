// Draws the groups of /status.json, every two seconds. All text goes through textContent: names come from people and
// from other sites.
"use strict";

const interval = 2000; // between two updates
const shown = 30 * 60 * 1000; // of the charts, as much as the server keeps

function element(tag, className, ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  for (const c of children) if (c !== null) e.append(c);
  return e;
}

function bytes(n) {
  if (n === null) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? n.toFixed(0) : n.toFixed(n < 10 ? 2 : 1)) + " " + units[i];
}

function seconds(s) {
  if (s === null) return "unknown";
  if (s < 1) return (s * 1000).toFixed(0) + " ms";
  if (s < 60) return s.toFixed(1) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + Math.floor(s % 60) + " s";
  return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
}

function tone(g) {
  if (g.state === "failed" || g.state === "diverged" || g.applyError) return "bad";
  if (g.state === "streaming" && !g.lagging) return "good";
  return g.state === "idle" ? "soft" : "warn";
}

function fact(name, value) {
  return element("div", "", element("dt", "", name), element("dd", "", value));
}

function point(p) {
  if (p.unixNanos === null) return "ordinal " + p.ordinal;
  return new Date(p.unixNanos / 1e6).toLocaleTimeString();
}

function facts(g, points) {
  const peer = g.peer ? g.peer + (g.connected ? ", connected" : ", not connected") : "none";
  const list = [fact("Peer", peer)];
  if (g.peer) {
    list.push(fact("Lag of the copy", seconds(g.lagSeconds)), fact("Missing in the copy", bytes(g.lagBytes)));
  }
  list.push(fact("Can be promoted", g.promotable ? "yes" : "no"),
    fact("Journal", bytes(g.journalUsedBytes) + " of " + bytes(g.journalSizeBytes)));
  if (g.rpoTargetSeconds > 0) {
    list.push(fact("RPO target", seconds(g.rpoTargetSeconds) + (g.lagging ? ", missed" : ", kept")));
  }
  if (g.changeMapBytes > 0) list.push(fact("To copy at the next contact", bytes(g.changeMapBytes)));
  if (g.lastReplicatedUnixNanos !== null) {
    list.push(fact("Complete until", new Date(g.lastReplicatedUnixNanos / 1e6).toLocaleTimeString()));
  }
  if (points && points.oldest && points.newest) {
    list.push(fact("Recovery points", point(points.oldest) + " to " + point(points.newest)));
  }
  return element("dl", "facts", ...list);
}

function sync(g) {
  if (!g.syncTotalBytes) return null;
  const bar = element("progress", "");
  bar.max = g.syncTotalBytes;
  bar.value = g.syncDoneBytes;
  bar.setAttribute("aria-label", "progress of the copy");
  return element("div", "", bar,
    element("p", "soft", "copied " + bytes(g.syncDoneBytes) + " of " + bytes(g.syncTotalBytes)));
}

// chart draws one value over time. Its labels are text beside the drawing, so that none lies over another.
function chart(className, title, history, now, value, format) {
  const known = history.map(value).filter(v => v !== null);
  const top = Math.max(...known, 0) || 1;
  let path = "", open = false;
  for (const p of history) {
    const v = value(p);
    if (v === null) { open = false; continue; }
    const x = 1000 * (1 - (now - p.unixMillis) / shown), y = 98 - 94 * v / top;
    path += (open ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1);
    if (!open) path += "l0 0";
    open = true;
  }
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const largest = known.length ? format(Math.max(...known)) : "unknown";
  svg.setAttribute("aria-label", title + " over the last 30 minutes, largest " + largest);
  const line = document.createElementNS(space, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return element("figure", className,
    element("figcaption", "", element("span", "", title), element("span", "", "largest " + largest)), svg,
    element("div", "axis", element("span", "", "30 min ago"), element("span", "", "now")));
}

function volumes(g, open) {
  if (!g.volumes.length) return null;
  const head = element("tr", "", ...["Volume", "Size", "Attached", "Claim"].map(t => element("th", "", t)));
  const rows = g.volumes.map(v => element("tr", "", ...[v.volumeId, bytes(v.sizeBytes), v.attached ? "yes" : "no",
    v.claimName ? v.claimNamespace + "/" + v.claimName : "-"].map(t => element("td", "", t))));
  const details = element("details", "", element("summary", "", "Volumes: " + g.volumes.length),
    element("div", "scroll", element("table", "", head, ...rows)));
  details.open = open;
  return details;
}

function next(n) {
  const text = element("p", "", n.text);
  if (!n.command) return element("div", "next", text);
  return element("div", "next act", text,
    element("p", "", "At " + n.site + ": ", element("code", "", n.command)));
}

function group(entry, now, open) {
  const g = entry.status;
  const reason = g.applyError || g.stateReason;
  const e = element("section", "group",
    element("div", "head", element("h2", "", g.name), element("span", "badge soft", g.role || "no role"),
      element("span", "badge " + tone(g), g.state || "unknown")),
    reason ? element("p", "reason " + tone(g), reason) : null,
    next(entry.next), sync(g), facts(g, entry.points),
    element("div", "charts",
      g.peer ? chart("lag", "Lag of the copy", entry.history, now, p => p.lagSeconds, seconds) : null,
      chart("journal", "Journal", entry.history, now, p => p.journalUsedBytes, bytes)),
    volumes(g, open));
  e.dataset.name = g.name;
  return e;
}

// draw replaces the groups. Lists of volumes that a person has opened stay open.
function draw(status) {
  document.title = status.site + ", Slipstream";
  document.getElementById("site").textContent = status.site;
  const about = document.getElementById("about");
  about.className = "";
  about.textContent = "Slipstream " + status.version + ", " + new Date(status.unixMillis).toLocaleTimeString();
  const main = document.getElementById("groups");
  const open = new Set([...main.querySelectorAll("details[open]")].map(d => d.parentElement.dataset.name));
  const sections = status.groups.map(g => group(g, status.unixMillis, open.has(g.status.name)));
  if (!sections.length) sections.push(element("p", "soft", "There are no groups at this site."));
  main.replaceChildren(...sections);
}

async function update() {
  try {
    const response = await fetch("status.json");
    if (!response.ok) throw new Error(await response.text());
    draw(await response.json());
  } catch (error) {
    const about = document.getElementById("about");
    about.className = "bad";
    about.textContent = "The replicator does not answer. What is shown is old. " + error.message;
  }
  setTimeout(update, interval);
}

update();
