/* Before anything is drawn, so that no page flashes in the other colours. */
"use strict";
document.documentElement.classList.add("js");
try {
  const colours = localStorage.getItem("colours");
  if (colours === "light" || colours === "dark") document.documentElement.dataset.colours = colours;
} catch {
  /* A browser that keeps nothing shows the system's colours. */
}
