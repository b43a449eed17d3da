"use strict";
const byId = (id) => document.getElementById(id);
const rows = JSON.parse(byId("rows").textContent);
const grid = byId("grid");
const form = byId("filter");
const viewer = byId("viewer");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const tiles = [...grid.querySelectorAll(".tile")];
tiles.forEach((tile) => {
  tile.row = rows[Number(tile.dataset.row)];
  const { id, prompt, state, message, remedy, facts } = tile.row;
  tile.text = [id, prompt, state, message, remedy, ...facts.flat()].join("\n").toLowerCase();
});
let shown = tiles;

/* Clips: only those in view play. One that is far away gives its decoder back, since browsers allow few. */
const start = (video) => {
  if (!video.hasAttribute("src")) video.src = video.dataset.src;
  video.play().catch(() => {});
};
const wanted = (video) => video.near && !viewer.open && !document.hidden && !(video.stopped ?? calm.matches);
const settle = (video) => (wanted(video) ? start(video) : video.pause());
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.near = isIntersecting;
    settle(target);
  }
}, { threshold: 0.15 });
const far = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting || !target.hasAttribute("src") || target.readyState === 0) continue;
    target.dataset.src = target.getAttribute("src");
    target.removeAttribute("src");
    target.load();
  }
}, { rootMargin: "2000px 0px" });

const videos = tiles.flatMap((tile) => {
  const video = tile.querySelector("video");
  if (!video) return [];
  const button = tile.querySelector(".play");
  const fill = tile.querySelector(".track i");
  const mark = () => {
    button.toggleAttribute("data-paused", video.paused);
    button.setAttribute("aria-label", `${video.paused ? "Play" : "Pause"} ${tile.row.id}`);
  };
  /* Attributes do not mute a video made by a parser in every browser, and an unmuted one may not start by itself. */
  video.muted = true;
  video.addEventListener("play", mark);
  video.addEventListener("pause", mark);
  video.addEventListener("timeupdate", () => {
    fill.style.transform = `scaleX(${video.duration ? video.currentTime / video.duration : 0})`;
  });
  button.addEventListener("click", () => {
    video.stopped = !video.paused;
    settle(video);
  });
  near.observe(video);
  far.observe(video);
  return [video];
});
const settleAll = () => videos.forEach(settle);
document.addEventListener("visibilitychange", settleAll);
calm.addEventListener("change", settleAll);

/* Filter and sort */
const orders = {
  number: (a, b) => a.number - b.number,
  id: (a, b) => a.id.localeCompare(b.id, undefined, { numeric: true }),
  state: (a, b) => a.state.localeCompare(b.state),
  size: (a, b) => b.width * b.height - a.width * a.height,
  long: (a, b) => b.seconds - a.seconds,
  // What was not measured stands behind.
  fidelity: (a, b) => (a.fidelity ?? 2) - (b.fidelity ?? 2),
};
let order = "number";
const apply = () => {
  const { text, state, look, class: cls, sort } = Object.fromEntries(new FormData(form));
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (sort !== order) {
    order = sort;
    tiles.sort((a, b) => orders[sort](a.row, b.row) || a.row.number - b.row.number);
    grid.append(...tiles);
  }
  shown = tiles.filter((tile) => {
    const fits = (!state || tile.row.state === state) && (!cls || tile.row.class === cls)
      && (!look || (look === "*" ? tile.row.look.length > 0 : tile.row.look.includes(look)))
      && words.every((word) => tile.text.includes(word));
    tile.hidden = !fits;
    return fits;
  });
  const all = `${tiles.length} ${tiles.length === 1 ? "row" : "rows"}`;
  byId("count").value = shown.length === tiles.length ? all : `${shown.length} of ${all}`;
  byId("nothing").hidden = shown.length > 0;
};
form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
byId("clear")?.addEventListener("click", () => { form.reset(); apply(); form.elements.text.focus(); });

/* The large view */
const make = (name, attributes, ...children) => {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...children);
  return element;
};
let current = null;
const show = (tile) => {
  const { id, prompt, state, video, poster, json, field, message, remedy, facts } = tile.row;
  current = tile;
  byId("viewer-title").textContent = id;
  byId("viewer-prompt").textContent = prompt;
  byId("viewer-facts").replaceChildren(
    ...facts.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]));
  const links = [];
  if (video) links.push(make("a", { href: video, download: "" }, "Save clip"));
  if (json) links.push(make("a", { href: json, target: "_blank", rel: "noopener" }, "Provenance"));
  byId("viewer-links").replaceChildren(...links);
  const stage = byId("stage");
  stage.className = `stage ${state}`;
  if (video) {
    const large = make("video", { src: video, poster, muted: true, loop: true, playsInline: true, controls: true });
    stage.replaceChildren(large);
    if (!calm.matches) large.play().catch(() => {});
  } else {
    const label = make("div", { className: "label" }, make("span", { className: `dot ${state}` }),
      state[0].toUpperCase() + state.slice(1));
    if (field) label.append(make("code", {}, field));
    stage.replaceChildren(make("div", { className: "note" }, label,
      make("p", { className: "message" }, message), make("p", { className: "remedy" }, remedy)));
  }
  const at = shown.indexOf(tile);
  byId("back").disabled = at <= 0;
  byId("next").disabled = at === shown.length - 1;
  if (!viewer.open) viewer.showModal();
  settleAll();
};
const step = (by) => {
  const next = shown[shown.indexOf(current) + by];
  if (next) show(next);
};
grid.addEventListener("click", (event) => {
  const link = event.target.closest(".open");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  show(link.closest(".tile"));
});
byId("back").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLVideoElement) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("close", () => {
  byId("stage").replaceChildren();
  settleAll();
  current?.querySelector(".open").focus();
});
addEventListener("beforeprint", () => videos.forEach((video) => video.pause()));
addEventListener("afterprint", settleAll);
apply();
