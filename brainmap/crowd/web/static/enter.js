// Sign-up, log-in, and agreeing anew to a changed text.
import { call, Offline } from "./http.js";

function bind(id, send) {
  const form = document.getElementById(id);
  if (!form) return;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const error = form.querySelector(".error"), button = form.querySelector("button");
    error.hidden = true;
    button.disabled = true;
    try {
      await send(form, Object.fromEntries(new FormData(form)));
      location.assign("/");
    } catch (problem) {
      error.textContent = problem instanceof Offline ? form.dataset.network : problem.message;
      error.hidden = false;
      button.disabled = false;
    }
  });
}

bind("sign-up", (form, { name, password }) =>
  call("POST", "/api/account", { name, password, consent: form.dataset.version, language: form.dataset.language }));
bind("log-in", (_form, { name, password }) => call("POST", "/api/session", { name, password }));
bind("consent", (form) => call("POST", "/api/consent", { consent: form.dataset.version }));
