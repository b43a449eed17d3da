/* A batch's rows as a wall of playing clips. Only what is seen is in the page, so that thousands scroll as ten do. */

const byId = (id) => document.getElementById(id);
const wall = byId("wall");
const form = byId("filter");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const CAPTION = 74;
const NOTE_ASPECT = 1.25;
const MOST_PLAYING = 16;

/* -- rows ------------------------------------------------------------------------------------------------------ */

/** Rows by place, in their order: `rows` is sorted, `at` finds one. */
const rows = [];
const at = new Map();
const byJob = new Map();
let total = Number(wall.dataset.total);
let now = 0;
let heldBy;
let shown = [];

/** Where the row of a place stands in `rows`. */
function placeOf(place) {
  let low = 0;
  let high = rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].place < place) low = middle + 1;
    else high = middle;
  }
  return low;
}

function take(found) {
  let moved = false;
  for (const row of found) {
    row.text = [row.id, row.prompt, row.state, row.message, row.remedy, row.columns].filter(Boolean).join("\n").toLowerCase();
    row.look ??= [];
    const known = at.get(row.place);
    if (known) {
      row.done = row.state === "running" ? known.done : undefined;
      rows[placeOf(row.place)] = row;
    } else {
      moved ||= rows.length > 0 && rows.at(-1).place > row.place;
      rows.push(row);
    }
    at.set(row.place, row);
    byJob.set(row.job, row);
  }
  if (moved) rows.sort((a, b) => a.place - b.place);
}

async function fetchRows(query) {
  let after = -1;
  for (;;) {
    const answer = await fetch(`${wall.dataset.rows}?after=${after}${query}`);
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw new Error(String(answer.status));
    const page = await answer.json();
    take(page.rows);
    /* Two seconds back: the store counts whole seconds, and what began before may be written later. */
    if (after === -1) now = Math.max(now, page.now - 2);
    if (page.rows.length) filtered();
    if (!page.has_more) return;
    after = page.rows.at(-1).place;
  }
}

let busy = null;
let again = "";
/** Fetch what changed (or everything), one request at a time. */
function update(everything = false) {
  if (busy) {
    again = everything || again === "all" ? "all" : "changed";
    return;
  }
  const query = everything || !rows.length ? "" : `&since=${now}`;
  busy = fetchRows(query)
    .then(() => {
      retryMs = 1000;
      wall.removeAttribute("aria-busy");
    })
    .catch(() => {
      setTimeout(() => update(everything), retryMs);
      retryMs = Math.min(2 * retryMs, 15000);
    })
    .finally(() => {
      busy = null;
      filtered();
      if (again) {
        const all = again === "all";
        again = "";
        setTimeout(() => update(all), 500);
      }
    });
}
let retryMs = 1000;

/* -- filter ---------------------------------------------------------------------------------------------------- */

const STATES = ["completed", "failed", "cancelled", "running", "queued", "held"];
const said = () => Object.fromEntries(new FormData(form));

function options(select, counted, all) {
  const chosen = select.value || select.dataset.wanted || "";
  const key = JSON.stringify(counted);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  const made = [new Option(all, "")];
  for (const [value, text] of counted) made.push(new Option(text, value));
  select.replaceChildren(...made);
  select.value = chosen;
  if (select.value !== chosen) select.value = "";
  else delete select.dataset.wanted;
}

function facets() {
  const states = new Map();
  const looks = new Map();
  const classes = new Map();
  let worth = 0;
  const one = (map, key) => map.set(key, (map.get(key) ?? 0) + 1);
  for (const row of rows) {
    one(states, row.state);
    if (row.class) one(classes, row.class);
    if (row.look.length) worth += 1;
    for (const title of row.look) one(looks, title);
  }
  const n = (number) => number.toLocaleString("en");
  const upper = (word) => word[0].toUpperCase() + word.slice(1);
  options(form.elements.state, STATES.filter((s) => states.has(s)).map((s) => [s, `${upper(s)} (${n(states.get(s))})`]), "All states");
  const byNumber = [...looks].sort((a, b) => b[1] - a[1]).map(([title, number]) => [title, `${upper(title)} (${n(number)})`]);
  options(form.elements.look, worth ? [["*", `Worth a look (${n(worth)})`], ...byNumber] : [], "Any notes");
  options(form.elements.class, [...classes].sort((a, b) => parseInt(a[0]) - parseInt(b[0])).map(([c, number]) => [c, `${c} (${n(number)})`]), "All classes");
}

function filtered() {
  facets();
  const { text, state, look, class: cls } = said();
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  shown = rows.filter((row) => (!state || row.state === state) && (!cls || row.class === cls)
    && (!look || (look === "*" ? row.look.length > 0 : row.look.includes(look)))
    && words.every((word) => row.text.includes(word)));
  const all = `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "row" : "rows"}`;
  const some = rows.length < total ? `${all} of ${total.toLocaleString("en")} so far` : all;
  byId("count").value = shown.length === rows.length ? some : `${shown.length.toLocaleString("en")} of ${all}`;
  byId("nothing").hidden = shown.length > 0 || !rows.length;
  lay();
}

form.addEventListener("input", () => {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(said())) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  history.replaceState(null, "", url);
  filtered();
  draw();
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  form.reset();
  form.dispatchEvent(new Event("input", { bubbles: true }));
  form.elements.text.focus();
});
for (const [name, value] of new URL(location.href).searchParams) {
  const field = form.elements[name];
  if (field instanceof HTMLInputElement) field.value = value;
  else if (field instanceof HTMLSelectElement) field.dataset.wanted = value;
}

/* -- where everything stands ------------------------------------------------------------------------------------ */

/** Lines of tiles: {top, height, first, count}; the widths of a line's tiles go by their aspects. */
let lines = [];
let places = [];
let gap = 22;
let laidFor = "";

function lay() {
  const width = wall.clientWidth;
  const narrow = width < 560;
  const height = narrow ? 168 : 216;
  gap = narrow ? 14 : 22;
  lines = [];
  places = new Array(shown.length);
  let top = 0;
  let first = 0;
  let sum = 0;
  const close = (end, full) => {
    const room = width - gap * (end - first - 1);
    const high = full ? Math.min(room / sum, 1.5 * height) : Math.min(height, room / sum);
    let left = 0;
    for (let n = first; n < end; n += 1) {
      const wide = aspect(shown[n]) * high;
      places[n] = { left, wide };
      left += wide + gap;
    }
    lines.push({ top, high, first, count: end - first });
    top += high + CAPTION + gap;
    first = end;
    sum = 0;
  };
  for (let n = 0; n < shown.length; n += 1) {
    sum += aspect(shown[n]);
    if (sum * height + gap * (n - first) >= width) close(n + 1, true);
  }
  if (first < shown.length) close(shown.length, false);
  wall.style.height = `${Math.ceil(top)}px`;
  laidFor = `${width}`;
  draw();
}
const aspect = (row) => (row.plays && row.aspect ? Math.min(Math.max(row.aspect, 0.5), 2.4) : NOTE_ASPECT);

/* -- what is seen ----------------------------------------------------------------------------------------------- */

/** Tiles in the page, by their row's place. */
const tiles = new Map();

function lineAt(y) {
  let low = 0;
  let high = lines.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (lines[middle].top <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}

function draw() {
  if (!lines.length) {
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
    return;
  }
  const from = -wall.getBoundingClientRect().top;
  const margin = 0.6 * innerHeight;
  const wanted = new Set();
  for (let n = lineAt(from - margin); n < lines.length && lines[n].top < from + innerHeight + margin; n += 1) {
    const line = lines[n];
    for (let k = line.first; k < line.first + line.count; k += 1) {
      const row = shown[k];
      wanted.add(row.place);
      place(tileOf(row), k, line);
    }
  }
  const focused = document.activeElement?.closest(".tile");
  for (const [number, tile] of tiles) {
    if (wanted.has(number) || (tile === focused && shown.includes(tile.row))) continue;
    stop(tile);
    tile.remove();
    tiles.delete(number);
  }
}

function place(tile, k, line) {
  const { left, wide } = places[k];
  const key = `${left}|${line.top}|${wide}|${line.high}|${k}|${shown.length}`;
  if (tile.key === key) return;
  tile.key = key;
  tile.index = k;
  tile.style.transform = `translate(${left}px, ${line.top}px)`;
  tile.style.width = `${wide}px`;
  tile.firstChild.style.height = `${line.high}px`;
  tile.setAttribute("aria-posinset", k + 1);
  tile.setAttribute("aria-setsize", shown.length);
}

const make = (name, className, ...children) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
};
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

function tileOf(row) {
  const known = tiles.get(row.place);
  if (known && known.row === row) return known;
  const tile = built(row);
  if (known) {
    const focused = known.contains(document.activeElement);
    stop(known);
    known.replaceWith(tile);
    if (focused) tile.querySelector("a").focus({ preventScroll: true });
  } else wall.append(tile);
  tiles.set(row.place, tile);
  return tile;
}

function built(row) {
  const href = `/clips/${encodeURIComponent(row.job)}`;
  const frame = make("a", "frame");
  frame.href = href;
  if (row.plays) {
    if (row.poster) {
      const poster = new Image();
      poster.decoding = "async";
      poster.alt = "";
      /* One that is gone shows the well behind it, and no sign of a browser's. */
      poster.addEventListener("error", () => poster.remove());
      poster.src = `/v1/videos/${encodeURIComponent(row.job)}/content?variant=thumbnail`;
      frame.append(poster);
    }
  } else {
    frame.classList.add("note");
    const label = make("span", "label", make("span", `dot ${row.state}`), row.state);
    if (row.field) label.append(make("code", "", row.field));
    frame.append(label, make("span", "message", row.message ?? ""), make("span", "remedy", row.remedy ?? ""));
  }
  frame.setAttribute("aria-label", [row.id, row.state, row.message, ...row.look].filter(Boolean).join(", "));
  const name = make("a", "", row.id);
  name.href = href;
  name.tabIndex = -1;
  const facts = make("p", "facts-line");
  if (row.picked) facts.append("picked · ");
  else if (row.round) facts.append(`${row.round} · `);
  if (row.look.length) facts.append(make("b", "", row.look.join(", ")), " · ");
  facts.append([row.size, row.length].filter(Boolean).join(" · "));
  const tile = make("div", `tile ${row.state}`, frame,
    make("div", "caption", make("h2", "", name), make("p", "prompt", row.prompt ?? ""), facts));
  tile.setAttribute("role", "listitem");
  tile.row = row;
  if (row.state === "running" && row.done) showSteps(tile);
  return tile;
}

function showSteps(tile) {
  const { step, steps } = tile.row.done;
  const frame = tile.firstChild;
  let bar = frame.querySelector(".on");
  if (!bar) {
    bar = svg("svg", { class: "on", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(svg("rect", { class: "empty", width: 100, height: 4 }), svg("rect", { class: "running", width: 0, height: 4 }));
    frame.append(bar);
  }
  bar.lastChild.setAttribute("width", steps ? (100 * step) / steps : 0);
  frame.querySelector(".message").textContent = `Being rendered: step ${step} of ${steps}`;
}

/* -- playing ---------------------------------------------------------------------------------------------------- */

function start(tile) {
  if (tile.video || !tile.row.plays) return;
  const video = make("video");
  /* An unmuted one may not start by itself. */
  video.muted = true;
  video.loop = true;
  video.playsInline = true;
  video.disablePictureInPicture = true;
  video.tabIndex = -1;
  video.setAttribute("aria-hidden", "true");
  video.src = `/v1/videos/${encodeURIComponent(tile.row.job)}/content`;
  tile.video = video;
  video.addEventListener("playing", () => { if (tile.video === video) tile.firstChild.append(video); }, { once: true });
  video.play().catch(() => { /* Its poster stays. */ });
}
function stop(tile) {
  if (!tile.video) return;
  /* A browser has few decoders, and gives one back when the source is gone. */
  tile.video.pause();
  tile.video.removeAttribute("src");
  tile.video.load();
  tile.video.remove();
  tile.video = null;
}
function play() {
  let playing = 0;
  for (const tile of tiles.values()) {
    const box = tile.getBoundingClientRect();
    const seen = box.top < innerHeight - 40 && box.bottom - CAPTION > 40;
    const may = seen && !document.hidden && (!calm.matches || tile.matches(":hover, :focus-within"));
    if (may && playing < MOST_PLAYING) {
      playing += 1;
      start(tile);
    } else stop(tile);
  }
}
let still = 0;
const playSoon = () => {
  clearTimeout(still);
  still = setTimeout(play, 160);
};

/* -- events ----------------------------------------------------------------------------------------------------- */

let frameAsked = false;
addEventListener("scroll", () => {
  if (!frameAsked) {
    frameAsked = true;
    requestAnimationFrame(() => {
      frameAsked = false;
      draw();
    });
  }
  playSoon();
  keepPlace();
}, { passive: true });
new ResizeObserver(() => { if (laidFor !== `${wall.clientWidth}`) { lay(); playSoon(); } }).observe(wall);
document.addEventListener("visibilitychange", () => {
  play();
  if (!document.hidden) update();
});
calm.addEventListener("change", play);
for (const kind of ["pointerover", "pointerout", "focusin", "focusout"]) {
  wall.addEventListener(kind, () => { if (calm.matches) playSoon(); });
}
wall.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const k = tile.index;
  const line = lines.findIndex((one) => k >= one.first && k < one.first + one.count);
  const below = (by) => {
    const other = lines[line + by];
    return other && Math.min(other.first + k - lines[line].first, other.first + other.count - 1);
  };
  const to = { ArrowLeft: k - 1, ArrowRight: k + 1, ArrowUp: below(-1), ArrowDown: below(1), Home: 0, End: shown.length - 1 }[event.key];
  if (to === undefined || !shown[to]) return;
  event.preventDefault();
  const target = lines.findIndex((one) => to >= one.first && to < one.first + one.count);
  const top = lines[target].top;
  const from = -wall.getBoundingClientRect().top;
  if (top < from + 80) scrollBy(0, top - from - 90);
  else if (top + lines[target].high + CAPTION > from + innerHeight) scrollBy(0, top + lines[target].high + CAPTION - from - innerHeight + 20);
  draw();
  tiles.get(shown[to].place)?.querySelector("a").focus({ preventScroll: true });
});

let changed = 0;
const updateSoon = () => { changed ||= setTimeout(() => { changed = 0; update(); }, 500); };
document.addEventListener("clipmill:job", updateSoon);
document.addEventListener("clipmill:end", updateSoon);
document.addEventListener("clipmill:again", () => update(true));
document.addEventListener("clipmill:batch", (event) => {
  /* A batch that is paused is one flag: its rows are shown as held, and none of them has changed. */
  const held = event.detail.held?.batch ?? null;
  const all = heldBy !== undefined && held !== heldBy;
  heldBy = held;
  if (all) update(true);
  else if (event.detail.counts.total !== rows.length) updateSoon();
  total = event.detail.counts.total;
});
document.addEventListener("clipmill:progress", (event) => {
  const row = byJob.get(event.detail.id);
  if (!row) return;
  row.done = event.detail;
  const tile = tiles.get(row.place);
  if (tile && row.state === "running") showSteps(tile);
});

/* Where one was, after a reload: only once the rows are there the page is high enough. */
const PLACE = `clipmill:${location.pathname}`;
let kept = 0;
function keepPlace() {
  clearTimeout(kept);
  kept = setTimeout(() => {
    try { sessionStorage.setItem(PLACE, String(Math.round(scrollY))); } catch { /* Not kept. */ }
  }, 200);
}
const wantedY = (() => {
  try { return Number(sessionStorage.getItem(PLACE) ?? 0); } catch { return 0; }
})();
history.scrollRestoration = "manual";

wall.replaceChildren();
wall.classList.add("live");
wall.setAttribute("role", "list");
wall.setAttribute("aria-label", "Clips");
wall.setAttribute("aria-busy", "true");
byId("pages").hidden = true;
await fetchRows("").then(() => wall.removeAttribute("aria-busy"), () => update(true));
filtered();
if (wantedY && performance.getEntriesByType("navigation")[0]?.type !== "navigate") scrollTo(0, wantedY);
draw();
playSoon();
