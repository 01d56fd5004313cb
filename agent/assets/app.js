// Keeps a page fresh; everything works without it. The server draws: on each event the page is fetched and its live parts are exchanged.

const body = document.body;
const skew = Date.now() - Number(body.dataset.now);
const state = document.getElementById("link-state");
let source = null;   // at most one stream a tab
let last = Date.now(); // when something was heard
let after = 0;       // the last line's number
let due = 0;

// The time that is left, in the server's time.
function tick() {
  const now = Date.now() - skew;
  for (const el of document.querySelectorAll("[data-until]")) {
    const s = Math.max(0, Math.round((el.dataset.until - now) / 1000));
    const text = s < 90 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
    if (el.textContent !== text) el.textContent = text;
  }
  for (const el of document.querySelectorAll("progress[data-from]")) el.value = Math.min(el.max, now - el.dataset.from);
}

// Exchanges the live parts. What a person has opened stays open, what one types in stays.
async function refresh() {
  due = 0;
  let page;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status);
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    say("No connection. Trying again.");
    return later(4000);
  }
  document.title = page.title;
  const open = new Map();
  for (const el of document.querySelectorAll("[data-live] details[id]")) open.set(el.id, el.open);
  const foot = document.documentElement.scrollHeight - innerHeight - scrollY < 80;
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const old = document.getElementById(fresh.id);
    if (!old) continue;
    for (const el of fresh.querySelectorAll("details[id]")) if (open.has(el.id)) el.open = open.get(el.id);
    if (old.innerHTML !== fresh.innerHTML && !(old.contains(document.activeElement) && document.activeElement.matches("input,textarea"))) {
      const focus = old.contains(document.activeElement) && document.activeElement.id;
      old.replaceChildren(...fresh.childNodes);
      if (focus) document.getElementById(focus)?.focus();
    }
  }
  for (const fresh of page.querySelectorAll("[data-token]")) {
    const old = document.getElementById(fresh.id);
    if (old) old.value = fresh.value;
  }
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

function say(text) { if (state && state.textContent !== text) state.textContent = text; }

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
  // Refused, not merely broken: the page goes on by being loaded again.
  source.onerror = () => { if (source?.readyState === EventSource.CLOSED) later(5000); };
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

// One press is one press.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "1";
  setTimeout(() => delete form.dataset.sent, 5000);
});

tick();
connect();
