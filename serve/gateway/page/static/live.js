/* The event stream of a batch: opened while the page is seen, gone on with where it broke off. */

const KINDS = ["batch", "job", "progress", "end"];
const AGAIN_MS = [1000, 2000, 4000, 8000];

/**
 * Call `on(kind, data)` for each event of the stream at `url`.
 *
 * A browser has six connections to one gateway for all of its tabs: a tab that nobody sees has none, and is told on its
 * return what it missed. `reachable(yes)` hears whether the gateway answers.
 */
export function follow(url, { since, on, reachable }) {
  let stream = null;
  let at = since ?? "";
  let failed = 0;
  let ended = false;
  let timer = 0;

  const open = () => {
    clearTimeout(timer);
    if (ended || stream || document.hidden) return;
    stream = new EventSource(at === "" ? url : `${url}?since=${encodeURIComponent(at)}`);
    stream.addEventListener("open", () => {
      failed = 0;
      reachable(true);
    });
    for (const kind of KINDS) {
      stream.addEventListener(kind, (event) => {
        if (event.lastEventId) at = event.lastEventId;
        if (kind === "end") {
          ended = true;
          close();
        }
        on(kind, JSON.parse(event.data));
      });
    }
    stream.addEventListener("error", () => {
      /* Streams end by themselves after some minutes, which is no failure: only a second one in a row is. */
      close();
      failed += 1;
      if (failed > 1) reachable(false);
      timer = setTimeout(open, AGAIN_MS[Math.min(failed, AGAIN_MS.length) - 1]);
    });
  };
  const close = () => {
    stream?.close();
    stream = null;
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}
