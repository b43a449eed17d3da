/* Pictures and tables from a person's disk to a batch: sent, checked, and only then handed in. */
import { reachable, tell } from "./page.js";

const byId = (id) => document.getElementById(id);
const form = byId("new-form");
const TABLES = /\.(csv|tsv|txt|tab|jsonl|ndjson|parquet|pq|xml|rss|atom)$/i;
const PICTURES = /\.(jpe?g|png|webp|bmp|gif|tiff?|avif|heic|heif)$/i;
const AT_ONCE = 3;
const MOST_ROWS = 100000;

/** Pictures by the name that a table has for them: {file, still, problem}. */
const pictures = new Map();
let table = null;
let leftOut = [];
let rows = null;
let batchKey = "";
/** New cells by column, by the id of their row; and what the last check found. */
let fixes = {};
let noted = {};
let within = null;

/* -- what was chosen -------------------------------------------------------------------------------------------- */

async function* filesOf(entry, path) {
  if (entry.isFile) {
    yield [await new Promise((resolve, reject) => { entry.file(resolve, reject); }), path];
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!some.length) return;
    for (const one of some) yield* filesOf(one, path ? `${path}/${one.name}` : one.name);
  }
}

function add(file, name) {
  const last = name.split("/").at(-1);
  if (last.startsWith(".")) return;
  if (TABLES.test(name)) {
    if (table && table.name !== name) leftOut.push(`${name}: a batch has one table, and ${table.name} is it`);
    else {
      table = { file, name };
      readTable(table);
    }
  } else if (PICTURES.test(name)) pictures.set(name, { file });
  else leftOut.push(`${name}: neither a picture nor a table`);
}

function chosen() {
  const parts = [];
  if (table) parts.push(`the table ${table.name}`);
  if (pictures.size) parts.push(pictures.size === 1 ? "1 picture" : `${pictures.size.toLocaleString("en")} pictures`);
  byId("chosen-text").textContent = parts.length ? `Chosen: ${parts.join(" and ")}.` : "Nothing that can be used.";
  byId("chosen").hidden = false;
  const list = byId("left-out");
  list.replaceChildren(...leftOut.slice(0, 8).map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  if (leftOut.length > 8) list.append(Object.assign(document.createElement("li"), { textContent: `and ${leftOut.length - 8} more` }));
  list.hidden = !leftOut.length;
  send();
}

const drop = byId("drop");
for (const kind of ["dragover", "dragenter"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  /* All entries at once: the list is empty after the first wait. */
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  for (const entry of entries) {
    /* A folder's own name is no part of the paths that a table within it has. */
    for await (const [file, name] of filesOf(entry, entry.isFile ? entry.name : "")) add(file, name);
  }
  if (entries.length) chosen();
});
for (const id of ["files", "folder"]) {
  byId(id).addEventListener("change", (event) => {
    for (const file of event.target.files) {
      add(file, file.webkitRelativePath ? file.webkitRelativePath.split("/").slice(1).join("/") : file.name);
    }
    event.target.value = "";
    chosen();
  });
}
byId("forget").addEventListener("click", () => {
  pictures.clear();
  fixes = {};
  showFixes();
  table = null;
  leftOut = [];
  byId("chosen").hidden = true;
  forget();
  keep();
});

/* -- sent ------------------------------------------------------------------------------------------------------- */

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** The session is over: the gateway leads to where a key is given, and back to what was kept. */
function logIn() {
  keep();
  location.reload();
}

async function put(file) {
  for (let tried = 0; ; tried += 1) {
    let answer;
    try {
      answer = await fetch("/v1/stills", { method: "PUT", body: file });
    } catch {
      reachable(false);
      await sleep(Math.min(1000 * 2 ** tried, 15000));
      continue;
    }
    reachable(true);
    if (answer.status === 401) {
      logIn();
      await new Promise(() => {});
    }
    if (answer.ok) return { still: (await answer.json()).sha256 };
    if (answer.status === 429 || answer.status >= 500) {
      await sleep(1000 * Number(answer.headers.get("Retry-After") ?? 2));
      continue;
    }
    const { error } = await answer.json();
    return { problem: error.clipmill ?? { field: "image", message: error.message, remedy: error.remedy ?? "Choose another." } };
  }
}

let sending = false;
async function send() {
  if (sending) return;
  sending = true;
  forget();
  const waiting = () => [...pictures.values()].filter((one) => !one.still && !one.problem && !one.busy);
  const show = () => {
    const done = [...pictures.values()].filter((one) => one.still || one.problem).length;
    byId("sent").max = Math.max(pictures.size, 1);
    byId("sent").value = done;
    byId("sent-text").textContent = `${done.toLocaleString("en")} of ${pictures.size.toLocaleString("en")} pictures sent`;
    byId("sending").hidden = done === pictures.size;
  };
  const worker = async () => {
    for (let next = waiting()[0]; next; next = waiting()[0]) {
      next.busy = true;
      Object.assign(next, await put(next.file));
      next.busy = false;
      show();
      keepSoon();
    }
  };
  show();
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  sending = false;
  checkSoon();
}

/* -- checked ---------------------------------------------------------------------------------------------------- */

function forget() {
  rows = null;
  byId("report").replaceChildren();
  byId("hand-in").hidden = true;
  byId("fault").hidden = true;
}

function options() {
  const { prompt, model, resolution_class: size, tier, rounds, within: most } = Object.fromEntries(new FormData(form));
  const deliver = new FormData(form).getAll("deliver").join(",");
  return { prompt, model, resolution_class: size, tier, rounds, deliver, within: most.trim() };
}

/** Seconds until the time of day by which all is to be done, the next time that it is; 0: none was chosen. */
function secondsLeft() {
  if (!form.elements.done_by.value) return 0;
  const [hour, minute] = form.elements.done_by.value.split(":").map(Number);
  const then = new Date();
  then.setHours(hour, minute, 0, 0);
  if (then <= new Date()) then.setDate(then.getDate() + 1);
  return Math.max(1, Math.round((then - Date.now()) / 1000));
}

/* Whichever of both was said last counts; with either the resolution follows from it. */
function timesChanged(last) {
  const [by, most] = [form.elements.done_by, form.elements.within];
  if (last === by && by.value) most.value = "";
  if (last === most && most.value) by.value = "";
  form.elements.resolution_class.disabled = Boolean(by.value || most.value.trim());
}
for (const field of ["done_by", "within"]) {
  form.elements[field].addEventListener("input", (event) => timesChanged(event.target));
}

/* -- fixes ------------------------------------------------------------------------------------------------------ */

function showFixes() {
  const cells = Object.values(fixes).reduce((sum, one) => sum + Object.keys(one).length, 0);
  const count = Object.keys(fixes).length;
  byId("fixed").hidden = !count;
  byId("fixed-text").textContent = `${cells} ${cells === 1 ? "value" : "values"} of ${count} ${count === 1 ? "row" : "rows"} changed; your table stays as it is.`;
}

/** Take the fixes of all notes of a kind, or of one row's. */
function fix(code, row) {
  for (const [name, notes] of row ? [[row, noted[row] ?? []]] : Object.entries(noted)) {
    for (const note of notes) {
      if (note.code === code && note.fix) fixes[name] = { ...fixes[name], ...note.fix };
    }
  }
  showFixes();
  keep();
  checkSoon();
}
byId("report").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-fix]");
  if (!button) return;
  button.disabled = true;
  fix(button.dataset.fix, button.dataset.row);
});
byId("unfix").addEventListener("click", () => {
  fixes = {};
  showFixes();
  keep();
  checkSoon();
});

const stem = (name) => name.split("/").at(-1).replace(/\.[^.]*$/, "");

function manifest() {
  if (table) return [table.file, table.name];
  const lines = [...pictures.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }))
    .slice(0, MOST_ROWS).map((name) => JSON.stringify({ image: name, name: stem(name) }));
  return [new Blob([lines.join("\n")], { type: "application/jsonl" }), "pictures.jsonl"];
}

let checks = 0;
let timer = 0;
function checkSoon(ms = 0) {
  clearTimeout(timer);
  timer = setTimeout(check, ms);
}

async function check() {
  if (sending || (!table && !pictures.size)) return;
  const mine = ++checks;
  byId("checking").hidden = false;
  byId("submit").disabled = true;
  const body = new FormData();
  const [file, name] = manifest();
  body.append("manifest", file, name.split("/").at(-1));
  const stills = {};
  for (const [path, one] of pictures) stills[path] = one.still ?? one.problem;
  body.append("stills", new Blob([JSON.stringify(stills)], { type: "application/json" }), "stills.json");
  body.append("fixes", new Blob([JSON.stringify(fixes)], { type: "application/json" }), "fixes.json");
  if (secondsLeft()) body.append("done_in", secondsLeft());
  for (const [field, value] of Object.entries(options())) if (value) body.append(field, value);
  let answer;
  try {
    answer = await fetch(form.dataset.check, { method: "POST", body });
  } catch {
    reachable(false);
    if (mine === checks) checkSoon(3000);
    return;
  }
  if (answer.status === 401) {
    logIn();
    return;
  }
  const found = await answer.json().catch(() => null);
  /* What stands before a gateway may answer for it while it is away. */
  reachable(Boolean(found));
  if (mine !== checks) return;
  if (!found) {
    checkSoon(3000);
    return;
  }
  byId("checking").hidden = true;
  byId("submit").disabled = false;
  if (!answer.ok) {
    forget();
    const problem = found.error.clipmill;
    byId("fault-text").textContent = problem ? `${problem.field}: ${problem.message}` : found.error.message;
    byId("fault-remedy").textContent = problem?.remedy ?? found.error.remedy ?? "";
    byId("fault").hidden = false;
    return;
  }
  byId("fault").hidden = true;
  /* Made by the gateway's own template, which escapes what the table says; scripts in it would not run. */
  const report = new DOMParser().parseFromString(found.html, "text/html").querySelector(".report");
  byId("report").replaceChildren(report);
  ({ rows, noted, within } = found);
  batchKey = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const given = form.elements.name.value.trim();
  form.elements.name.placeholder = table ? found.name : "pictures";
  byId("hand-in").hidden = !found.good;
  byId("submit").textContent = `Hand in ${found.good.toLocaleString("en")} ${found.good === 1 ? "row" : "rows"}`;
  form.dataset.name = given || (table ? found.name : "pictures");
}
for (const field of ["prompt", "model", "resolution_class", "tier", "rounds", "done_by", "within"]) {
  form.elements[field].addEventListener("input", () => checkSoon(700));
}
for (const box of form.querySelectorAll('[name="deliver"]')) box.addEventListener("input", () => checkSoon(700));

/* -- handed in -------------------------------------------------------------------------------------------------- */

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!rows) return;
  const button = byId("submit");
  button.disabled = true;
  const { model, resolution_class: size, tier, rounds, deliver } = options();
  const chosen = Object.entries({ model, resolution_class: size, rounds, within, deliver }).filter(([, value]) => value);
  const defaults = { tier, ...Object.fromEntries(chosen) };
  const name = form.elements.name.value.trim() || form.dataset.name;
  const body = JSON.stringify({ name, rows, defaults, paused: form.elements.paused.checked });
  try {
    /* The key makes a second try, after an answer that got lost, the same batch. */
    const answer = await fetch("/v1/batches", {
      method: "POST", body, headers: { "Content-Type": "application/json", "Idempotency-Key": batchKey },
    });
    if (answer.status === 401) {
      logIn();
      return;
    }
    const found = await answer.json();
    if (answer.ok) {
      handedIn = true;
      forgetKept();
      location.assign(`/batches/${encodeURIComponent(found.id)}`);
      return;
    }
    tell([found.error.message, found.error.clipmill ? "" : found.error.remedy].filter(Boolean).join(" "));
  } catch {
    reachable(false);
  }
  button.disabled = false;
});

/* -- kept over a reload ------------------------------------------------------------------------------------------ */

/* Pictures lie in the farm's storage once they are sent, so their names are enough; of the table its bytes are kept. */
const KEPT = "clipmill:new";
const MOST_TABLE_BYTES = 2e6;
let handedIn = false;
let isKept = true;

const fieldsOf = () => [...form.elements].filter((one) => one.name && one.name !== "deliver");
const unsent = () => [...pictures.values()].filter((one) => !one.still && !one.problem);

function keep() {
  if (handedIn) return;
  const fields = Object.fromEntries(fieldsOf().map((one) => [one.name, one.type === "checkbox" ? one.checked : one.value]));
  const sent = [...pictures].filter(([, one]) => one.still || one.problem).map(([name, one]) => [name, one.still ?? one.problem]);
  const deliver = new FormData(form).getAll("deliver");
  const told = { owner: form.dataset.owner, fields, deliver, fixes, sent, table: table && { name: table.name, data: table.data } };
  isKept = !table || Boolean(table.data);
  for (const what of [told, { ...told, sent: [], table: null, fixes: {} }]) {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(what));
      return;
    } catch {
      /* More than a browser keeps: what was typed is kept at least. */
      isKept = !pictures.size && !table;
    }
  }
}
let keeping = 0;
function keepSoon() {
  clearTimeout(keeping);
  keeping = setTimeout(keep, 300);
}
function forgetKept() {
  clearTimeout(keeping);
  try { sessionStorage.removeItem(KEPT); } catch { /* Nothing was kept. */ }
}

/** The bytes of a table as text, so that they can be kept; none of one that is too large. */
function readTable(chosenTable) {
  if (chosenTable.file.size > MOST_TABLE_BYTES) return;
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    chosenTable.data = reader.result.slice(reader.result.indexOf(",") + 1);
    keep();
  });
  reader.readAsDataURL(chosenTable.file);
}

function restore() {
  let told = null;
  try { told = JSON.parse(sessionStorage.getItem(KEPT)); } catch { /* Nothing was kept. */ }
  if (!told || told.owner !== form.dataset.owner) return;
  for (const one of fieldsOf()) {
    if (!(one.name in told.fields)) continue;
    if (one.type === "checkbox") one.checked = told.fields[one.name];
    else one.value = told.fields[one.name];
  }
  for (const box of form.querySelectorAll('[name="deliver"]')) box.checked = told.deliver.includes(box.value);
  for (const [name, found] of told.sent) pictures.set(name, typeof found === "string" ? { still: found } : { problem: found });
  if (told.table?.data) {
    const bytes = Uint8Array.from(atob(told.table.data), (letter) => letter.charCodeAt(0));
    table = { ...told.table, file: new File([bytes], told.table.name) };
  }
  fixes = told.fixes;
  timesChanged();
  showFixes();
  if (table || pictures.size) chosen();
}

form.addEventListener("input", keepSoon);
addEventListener("pagehide", keep);
/* Back from the batch that was made of it, to hand in another. */
addEventListener("pageshow", (event) => { if (event.persisted) handedIn = false; });
addEventListener("beforeunload", (event) => {
  /* Only where something would have to be chosen again. */
  keep();
  if (!handedIn && (unsent().length || !isKept)) event.preventDefault();
});
restore();
