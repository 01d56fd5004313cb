// Keeps a page fresh; everything works without it. The server draws: on each event the page is fetched and its live parts are exchanged.

const body = document.body;
const skew = Date.now() - Number(body.dataset.now);
const state = document.getElementById("link-state");
let source = null;   // at most one stream a tab
let last = Date.now(); // when something was heard
let after = 0;       // the last line's number
let due = 0;
let busy = false;    // a page is on its way: one at a time, or an older one could come after a newer and stay

// The time that is left, in the server's time.
function tick() {
  const now = Date.now() - skew;
  for (const el of document.querySelectorAll("[data-until]")) {
    const s = Math.max(0, Math.round((el.dataset.until - now) / 1000));
    put(el, s < 90 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`);
  }
  // As the server words it: what was true a minute ago must not stand there as just now.
  for (const el of document.querySelectorAll("[data-at]")) {
    const s = Math.max(0, Math.floor((now - el.dataset.at) / 1000));
    put(el, s < 2 ? "just now" : `${s < 90 ? `${s} s` : s < 5400 ? `${Math.floor(s / 60)} min` : s < 172800 ? `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min` : `${Math.floor(s / 86400)} days`} ago`);
  }
  for (const el of document.querySelectorAll("progress[data-from]")) el.value = Math.min(el.max, now - el.dataset.from);
}

function put(el, text) { if (el && el.textContent !== text) el.textContent = text; }

// Makes one node like another, and leaves alone what is the same: what is pressed, focused, selected or read aloud at this moment stays.
function become(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; return; }
  // What a person has opened stays open; what was sent stays sent.
  const ours = (name) => name === "open" || name === "data-sent";
  for (const { name } of [...old.attributes]) if (!ours(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (!ours(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  becomeChildren(old, fresh);
}
function becomeChildren(old, fresh) {
  const was = [...old.childNodes], now = [...fresh.childNodes];
  now.forEach((node, n) => n < was.length ? become(was[n], node) : old.append(node));
  for (const node of was.slice(now.length)) node.remove();
}

// Takes over the live parts of the page as it is now. What one types in stays.
async function refresh() {
  due = 0;
  if (busy) return later(200);
  busy = true;
  let page;
  try {
    // A phone that slept has requests that nobody answers any more.
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, credentials: "same-origin", redirect: "manual", signal: AbortSignal.timeout(15000) });
    // No page of ours leads elsewhere: this is the identity provider, which wants to see the person again.
    if (answer.type === "opaqueredirect" || answer.status === 401) {
      say("You are signed out, and what is shown is old. Load this page again.");
      return later(15000);
    }
    if (!answer.ok) throw new Error(answer.status);
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    say("No connection: what is shown is old. Trying again.");
    return later(4000);
  } finally {
    busy = false;
  }
  document.title = page.title;
  const foot = document.documentElement.scrollHeight - innerHeight - scrollY < 80;
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const old = document.getElementById(fresh.id);
    if (old) become(old, fresh);
  }
  for (const fresh of page.querySelectorAll("[data-token]")) {
    const old = document.getElementById(fresh.id);
    if (old) old.value = fresh.value;
  }
  meet(Date.now());
  if (foot && document.querySelector("[data-follow]")) scrollTo(0, document.documentElement.scrollHeight);
  tick();
  say("");
  const stream = page.body.dataset.stream || "";
  if (stream.split("?")[0] !== (body.dataset.stream || "").split("?")[0]) {
    body.dataset.stream = stream;
    after = 0;
    connect();
  }
}

function later(ms) {
  const at = Date.now() + ms;
  if (due && due <= at) return;
  due = at;
  setTimeout(() => { if (due === at) refresh(); }, ms);
}

function say(text) { put(state, text); }

function heard() { last = Date.now(); }

function connect() {
  source?.close();
  source = null;
  const stream = body.dataset.stream;
  if (!stream) return;
  heard();
  const to = new URL(stream, location.href);
  if (after) to.searchParams.set("after", after);
  source = new EventSource(to);
  source.addEventListener("beat", heard);
  source.addEventListener("changed", () => { heard(); later(50); });
  source.addEventListener("line", (event) => {
    heard();
    after = Number(event.lastEventId) || after;
    for (const el of document.querySelectorAll(".words")) el.textContent = "";
    later(150);
  });
  source.addEventListener("words", (event) => {
    heard();
    const words = JSON.parse(event.data);
    const el = document.querySelector(".words");
    if (el && !words.thinking) el.textContent += words.text;
  });
  source.addEventListener("gone", () => { source.close(); source = null; body.dataset.stream = ""; later(0); });
  // Broken, which the browser mends by itself, or refused: the page looks whether the server is there.
  source.onerror = () => later(source?.readyState === EventSource.CLOSED ? 5000 : 1000);
}

// Phones end a stream in the background without a word: a watchdog on the heartbeat, and a look whenever the page comes back.
setInterval(tick, 1000);
setInterval(() => {
  if (!body.dataset.stream || document.hidden || Date.now() - last < 25000) return;
  connect();
  later(0);
}, 5000);
function back() {
  if (document.hidden || !body.dataset.stream) return;
  if (Date.now() - last > 12000 || !source || source.readyState === EventSource.CLOSED) { connect(); later(0); }
}
document.addEventListener("visibilitychange", back);
addEventListener("pageshow", (event) => { if (event.persisted) { connect(); later(0); } else back(); });
addEventListener("online", () => { connect(); later(0); });
addEventListener("pagehide", () => { source?.close(); source = null; });

// One press is one press; and what has only just come to lie under a finger was not meant.
const met = new WeakMap();
function meet(at) { for (const form of document.forms) if (!met.has(form)) met.set(form, at); }
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent || Date.now() - met.get(form) < 700) return event.preventDefault();
  form.dataset.sent = "1";
  setTimeout(() => delete form.dataset.sent, 5000);
});

meet(0);
tick();
connect();
