/* A key for a session: the cookie that is answered stands for it, and no script can read that. */
const form = document.getElementById("log-in");
const fault = document.getElementById("fault");
const { action } = form;
const go = () => location.replace(form.dataset.next);

/* Whoever follows a link from elsewhere comes without the cookie, which is sent from the farm's own pages only. */
fetch(action, { headers: { Accept: "application/json" } }).then((answer) => { if (answer.ok) go(); }).catch(() => {});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  fault.hidden = true;
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(action, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ key: form.elements.key.value.trim() }),
    });
    if (answer.ok) {
      go();
      return;
    }
    const { error } = await answer.json();
    fault.textContent = error.clipmill ? `${error.clipmill.message}. ${error.clipmill.remedy}` : error.message;
  } catch {
    fault.textContent = "The gateway does not answer. Try again in a moment.";
  }
  fault.hidden = false;
  button.disabled = false;
  form.elements.key.select();
});
