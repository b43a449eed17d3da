/* Drafts and candidates, decided on one by one: with buttons, or with keys alone. */
import { reachable, tell } from "./page.js";

const byId = (id) => document.getElementById(id);
const live = byId("live");
const rows = byId("rows");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const DONE = { approve: "approved", reject: "rejected", reroll: "made again", retry: "back for review" };

/* -- which clip is meant ---------------------------------------------------------------------------------------- */

const clips = () => [...rows.querySelectorAll(".review-clip[data-waits]")];
const sections = () => [...rows.querySelectorAll(".review-row")].filter((one) => one.querySelector("[data-waits]"));
let current = null;

function choose(clip, { focus = true, scroll = focus } = {}) {
  if (!clip) return;
  for (const one of rows.querySelectorAll(".review-clip.now")) one.classList.remove("now");
  current = clip;
  clip.classList.add("now");
  if (focus && !clip.contains(document.activeElement)) clip.focus({ preventScroll: true });
  if (scroll) clip.closest(".review-row").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  play();
}
const chosen = () => (current?.isConnected && current.hasAttribute("data-waits") ? current : clips()[0]);

function beside(by) {
  const all = clips();
  const at = all.indexOf(chosen());
  choose(all[Math.min(Math.max(at + by, 0), all.length - 1)]);
}
function row(by) {
  const all = sections();
  const at = all.indexOf(chosen()?.closest(".review-row"));
  const next = all[Math.min(Math.max(at + by, 0), all.length - 1)];
  if (next && at !== all.indexOf(next)) choose(next.querySelector("[data-waits]"));
}
rows.addEventListener("focusin", (event) => {
  const clip = event.target.closest(".review-clip[data-waits]");
  if (clip) choose(clip, { focus: false });
});

/* -- playing ----------------------------------------------------------------------------------------------------- */

/* Those of the row that is looked at play together, so that they can be compared. */
let stopped = calm.matches;
function play() {
  const now = current?.closest(".review-row");
  for (const video of rows.querySelectorAll("video")) {
    /* They are for those without scripts, or without a say. */
    video.controls = false;
    if (!stopped && !document.hidden && now?.contains(video)) video.play().catch(() => { /* Its poster stays. */ });
    else video.pause();
  }
}
document.addEventListener("visibilitychange", play);

/* -- deciding ---------------------------------------------------------------------------------------------------- */

/* Over a reload as well: what was rejected by a slip is taken back after it, too. */
const REJECTED = `clipmill:rejected:${location.pathname}`;
const rejected = (() => {
  try { return JSON.parse(sessionStorage.getItem(REJECTED)) ?? []; } catch { return []; }
})();
function keepRejected() {
  byId("undo").hidden = !rejected.length;
  try { sessionStorage.setItem(REJECTED, JSON.stringify(rejected.slice(-100))); } catch { /* Kept until a reload. */ }
}
keepRejected();
/* The events of the batch may tell of a decision before its own answer has come: what is taken back waits for that. */
let deciding = Promise.resolve();
function decide(...words) {
  deciding = decideNow(...words);
  return deciding;
}
async function decideNow(clip, verb, body = {}) {
  if (!clip?.hasAttribute("data-waits") || clip.dataset.busy) return;
  clip.dataset.busy = "yes";
  const { job, name } = clip.dataset;
  try {
    const answer = await fetch(`/v1/jobs/${encodeURIComponent(job)}/${verb}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (answer.status === 401) location.reload();
    if (!answer.ok) {
      const { error } = await answer.json();
      tell([error.message, error.clipmill ? "" : error.remedy].filter(Boolean).join(" "));
      await update();
      return;
    }
    if (verb === "reject" && !Object.keys(body).length) rejected.push({ job, name });
    keepRejected();
    const words = verb === "reject" && body.prompt ? "made again" : DONE[verb];
    tell(`${name}: ${words}.`, true);
    leave(clip, verb, words);
  } catch {
    reachable(false);
  } finally {
    delete clip.dataset.busy;
  }
}

/** Take what was decided out of the way, and go on with what is next. */
function leave(clip, verb, words) {
  const section = clip.closest(".review-row");
  const all = sections();
  const following = all[all.indexOf(section) + 1] ?? all[all.indexOf(section) - 1];
  const others = [...section.querySelectorAll("[data-waits]")].filter((one) => one !== clip);
  if (verb === "approve" || !others.length) {
    section.remove();
    if (current === clip || !current?.isConnected) choose(following?.querySelector("[data-waits]"));
  } else {
    clip.removeAttribute("data-waits");
    clip.removeAttribute("tabindex");
    clip.classList.remove("now");
    clip.querySelector(".actions")?.remove();
    clip.querySelector(".review-frame").replaceChildren(Object.assign(document.createElement("p"), {
      className: "review-none", textContent: `${words[0].toUpperCase()}${words.slice(1)}.`,
    }));
    choose(others[0]);
  }
  counted();
  update();
}

async function undo() {
  await deciding;
  const last = rejected.pop();
  if (!last) {
    tell("Nothing was rejected on this page.");
    return;
  }
  const answer = await fetch(`/v1/jobs/${encodeURIComponent(last.job)}/retry`, { method: "POST" }).catch(() => null);
  if (!answer) {
    rejected.push(last);
    reachable(false);
    return;
  }
  keepRejected();
  if (answer.ok) {
    tell(`${last.name}: ${DONE.retry}.`, true);
    comesBack = last.job;
  } else tell((await answer.json()).error.message);
  await update();
}

const edit = byId("edit");
function editPrompt(clip) {
  if (!clip?.querySelector('[data-verb="edit"]')) return;
  const text = byId("edit-prompt");
  text.value = clip.querySelector(".review-prompt")?.textContent ?? "";
  edit.returnValue = "";
  edit.showModal();
  text.focus();
  edit.addEventListener("close", () => {
    clip.focus();
    const prompt = text.value.trim();
    if (edit.returnValue === "yes" && prompt) decide(clip, "reject", { prompt });
  }, { once: true });
}

function guided(clip, by) {
  const before = Number(clip?.dataset.guidance);
  if (!clip || !(before > 1 || by > 0)) return;
  decide(clip, "reroll", { guidance: Math.min(30, Math.max(1, before + by)) });
}

rows.addEventListener("click", (event) => {
  const clip = event.target.closest(".review-clip[data-waits]");
  const button = event.target.closest("button.decide");
  if (!clip) return;
  if (!button) {
    if (!event.target.closest("a")) choose(clip);
    return;
  }
  if (button.dataset.verb === "edit") editPrompt(clip);
  else decide(clip, button.dataset.verb);
});

const toggle = byId("keys");
function help() {
  byId("help").hidden = !byId("help").hidden;
  toggle.setAttribute("aria-expanded", String(!byId("help").hidden));
}
toggle.addEventListener("click", help);
byId("undo").addEventListener("click", undo);

const KEYS = {
  a: () => decide(chosen(), "approve"),
  r: () => decide(chosen(), "reject"),
  s: () => chosen()?.querySelector('[data-verb="reroll"]') && decide(chosen(), "reroll"),
  e: () => editPrompt(chosen()),
  u: undo,
  n: () => row(1),
  "+": () => guided(chosen(), 1),
  "=": () => guided(chosen(), 1),
  "-": () => guided(chosen(), -1),
  " ": () => { stopped = !stopped; play(); },
  "?": help,
  ArrowLeft: () => beside(-1),
  ArrowRight: () => beside(1),
  ArrowUp: () => row(-1),
  ArrowDown: () => row(1),
};
let went = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  /* "g n" goes to another page. */
  if (event.key === "g") went = Date.now();
  if (event.key === "n" && Date.now() - went < 1500) return;
  /* A button that has the focus is pressed by space. */
  if (event.key === " " && event.target.closest("button, a")) return;
  const act = /^[1-9]$/.test(event.key)
    ? () => decide(chosen()?.closest(".review-row").querySelectorAll(".review-clip")[Number(event.key) - 1], "approve")
    : KEYS[event.key];
  if (!act || event.repeat && !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  act();
});

/* -- up to date -------------------------------------------------------------------------------------------------- */

function counted(told) {
  const number = sections().length;
  byId("left").textContent = told ?? `${number} ${number === 1 ? "row" : "rows"} to look at`;
  byId("none").hidden = number > 0;
}

/** The clip whose rejection was taken back: it is meant as soon as it is there, whichever look brings it. */
let comesBack = "";
let asked = 0;
/** Bring in what has come, and what has become of the rest; what is as it was stays in place, and goes on playing. */
async function update() {
  const mine = ++asked;
  const answer = await fetch(live.dataset.page, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok) {
    if (!answer || answer.status >= 500) reachable(false);
    else if (answer.status === 401) location.reload();
    return;
  }
  reachable(true);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (mine !== asked) return;
  const job = current?.dataset.job;
  const had = new Map([...rows.querySelectorAll(".review-row")].map((one) => [one.dataset.row, one]));
  const wanted = [...page.querySelectorAll(".review-row")];
  let before = null;
  for (const fresh of wanted) {
    const old = had.get(fresh.dataset.row);
    had.delete(fresh.dataset.row);
    let section = old;
    if (!old || old.dataset.key !== fresh.dataset.key) {
      section = document.adoptNode(fresh);
      old?.remove();
    }
    const place = before ? before.nextElementSibling : rows.firstElementChild;
    if (place !== section) rows.insertBefore(section, place);
    before = section;
  }
  for (const gone of had.values()) gone.remove();
  const returned = comesBack && rows.querySelector(`[data-job="${CSS.escape(comesBack)}"][data-waits]`);
  if (returned) {
    comesBack = "";
    choose(returned);
  } else if (!current?.isConnected) {
    const again = job && rows.querySelector(`[data-job="${CSS.escape(job)}"][data-waits]`);
    choose(again || clips()[0], { focus: !document.activeElement || document.activeElement === document.body });
  }
  /* A page has the first rows only: the gateway knows whether there are more. */
  counted(page.getElementById("left")?.textContent);
  play();
}
let soon = 0;
for (const kind of ["job", "batch", "end"]) {
  document.addEventListener(`clipmill:${kind}`, () => {
    soon ||= setTimeout(() => { soon = 0; update(); }, 700);
  });
}
document.addEventListener("clipmill:again", update);
/* The events of a batch end with it, and finished candidates are decided on after that, in other tabs as well. */
let over = false;
document.addEventListener("clipmill:end", () => { over = true; });
setInterval(() => { if (over && !document.hidden) update(); }, 10000);
document.addEventListener("visibilitychange", () => { if (over && !document.hidden) update(); });
choose(clips()[0], { scroll: false });
