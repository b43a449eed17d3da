/* What every page has: colours, keys, verbs with a question before them, and being up to date. */
import { follow } from "./live.js";

const byId = (id) => document.getElementById(id);

/* -- what the page says of itself ------------------------------------------------------------------------------- */

let hideLater = 0;
/** Say something above the page; `good` things go by themselves. */
export function tell(text, good = false) {
  const told = byId("told");
  clearTimeout(hideLater);
  told.textContent = text;
  told.classList.toggle("good", good);
  told.hidden = !text;
  if (good) hideLater = setTimeout(() => { told.hidden = true; }, 4000);
}

let away = false;
let asking = 0;
/** The gateway does not answer, or does so again. */
export function reachable(yes) {
  if (yes && away) {
    tell("Connected again.", true);
    document.dispatchEvent(new Event("clipmill:again"));
  }
  if (!yes && !away) tell("The gateway does not answer. What you see is from before; it is asked again and again.");
  away = !yes;
  /* Pages that are drawn anew now and then ask by that; of others the gateway is asked for what it always has. */
  clearTimeout(asking);
  if (away && !Number(byId("live")?.dataset.every)) asking = setTimeout(isThere, 3000);
}

async function isThere() {
  const icon = document.querySelector("link[rel=icon]").href;
  const answer = await fetch(icon, { cache: "no-store" }).catch(() => null);
  reachable(Boolean(answer?.ok));
}

/* -- colours --------------------------------------------------------------------------------------------------- */

const COLOURS = ["", "light", "dark"];
const WORDS = { "": "as the system", light: "light", dark: "dark" };
const theme = byId("theme");
const root = document.documentElement;
const nameTheme = () => theme?.setAttribute("aria-label", `Colours: ${WORDS[root.dataset.colours ?? ""]}`);
theme?.addEventListener("click", () => {
  const next = COLOURS[(COLOURS.indexOf(root.dataset.colours ?? "") + 1) % COLOURS.length];
  if (next) root.dataset.colours = next;
  else delete root.dataset.colours;
  try {
    if (next) localStorage.setItem("colours", next);
    else localStorage.removeItem("colours");
  } catch {
    /* It is kept until the page is left. */
  }
  nameTheme();
  theme.title = theme.getAttribute("aria-label");
});
nameTheme();

/* -- whose work is shown -------------------------------------------------------------------------------------- */

const owner = byId("owner");
owner?.addEventListener("change", () => {
  const back = owner.value === owner.dataset.own;
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `clipmill_owner=${encodeURIComponent(owner.value)}; Path=/; SameSite=Strict${secure}${back ? "; Max-Age=0" : ""}`;
  /* What is open belongs to somebody else. */
  location.assign("/");
});

/* -- times in the reader's zone -------------------------------------------------------------------------------- */

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
function showTimes(within) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.title = time.dateTime;
    time.textContent = exact.format(at);
  }
}
showTimes(document);

/* -- keys ------------------------------------------------------------------------------------------------------ */

const GO = { b: "/", c: "/cards", n: "/new" };
let went = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  if (event.key === "/") {
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  } else if (event.key === "g") went = Date.now();
  else if (Date.now() - went < 1500 && GO[event.key]) location.assign(GO[event.key]);
});

/* -- up to date ------------------------------------------------------------------------------------------------ */

const refresh = () => {
  const live = byId("live");
  if (live && !document.querySelector("dialog[open]")) window.htmx?.trigger(live, "refresh");
};
let last = Date.now();
setInterval(() => {
  const every = Number(byId("live")?.dataset.every ?? 0);
  if (every && !document.hidden && Date.now() - last >= 1000 * every) {
    last = Date.now();
    refresh();
  }
}, 500);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
document.addEventListener("clipmill:again", refresh);
document.body.addEventListener("htmx:sendError", () => reachable(false));
document.body.addEventListener("htmx:timeout", () => reachable(false));
document.body.addEventListener("htmx:responseError", (event) => {
  const { status } = event.detail.xhr;
  if (status >= 500) reachable(false);
  /* The session is over: the gateway leads a page to where a key is given, and back. */
  if (status === 401) location.reload();
});
document.body.addEventListener("htmx:afterRequest", (event) => {
  last = Date.now();
  if (event.detail.successful) reachable(true);
});
document.body.addEventListener("htmx:afterSwap", () => {
  const live = byId("live");
  if (live) showTimes(live);
  /* A clip that has just been finished is played by the page as it is now. */
  if (live?.hasAttribute("data-playable") && !byId("stage")) location.reload();
  /* So is the wall of a batch whose first rows have come. */
  if (live?.hasAttribute("data-has-rows") && !byId("wall")) location.reload();
});

let soon = 0;
const refreshSoon = () => {
  /* Many rows change in one second: one look shows them all. */
  soon ||= setTimeout(() => { soon = 0; refresh(); }, 700);
};
let following = false;
/** Follow the events of what is shown, unless it has ended; returns whether that begins now. */
function followLive() {
  const live = byId("live");
  if (following || !live?.dataset.events || live.hasAttribute("data-ended")) return false;
  const job = live.dataset.job;
  following = true;
  follow(live.dataset.events, {
    since: live.dataset.since,
    reachable,
    on(kind, data) {
      if (kind === "end") following = false;
      document.dispatchEvent(new CustomEvent(`clipmill:${kind}`, { detail: data }));
      const mine = !job || kind === "end" || data.id === job || kind === "batch";
      if (mine && (kind !== "progress" || job)) refreshSoon();
    },
  });
  return true;
}
followLive();
/* What had ended goes on, here or in another tab: what has happened since is asked for. */
document.body.addEventListener("htmx:afterSwap", () => { if (followLive()) document.dispatchEvent(new Event("clipmill:again")); });

byId("leave")?.addEventListener("click", async () => {
  await fetch("/v1/session", { method: "DELETE" }).catch(() => reachable(false));
  location.assign("/");
});

/* -- verbs ----------------------------------------------------------------------------------------------------- */

const ask = byId("ask");
/** Ask before something is done; the answer is the body of the request, or null for no. */
function asked({ confirm, priority }, label) {
  if (confirm === undefined && priority === undefined) return Promise.resolve({});
  byId("ask-text").textContent = confirm ?? "Higher numbers start earlier; 0 is usual.";
  byId("ask-number").hidden = priority === undefined;
  const number = byId("ask-number").querySelector("input");
  number.value = priority ?? "0";
  byId("ask-yes").textContent = label;
  ask.returnValue = "";
  ask.showModal();
  return new Promise((resolve) => {
    ask.addEventListener("close", () => {
      if (ask.returnValue !== "yes") resolve(null);
      else resolve(priority === undefined ? {} : { priority: Number(number.value) });
    }, { once: true });
  });
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.verb");
  if (!button) return;
  const body = await asked(button.dataset, button.textContent);
  if (body === null) {
    button.focus();
    return;
  }
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.url, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (answer.ok) tell(`${button.textContent}: done.`, true);
    else {
      const { error } = await answer.json();
      tell([error.message, error.clipmill ? "" : error.remedy].filter(Boolean).join(" "));
    }
  } catch {
    reachable(false);
  }
  button.disabled = false;
  refresh();
});
