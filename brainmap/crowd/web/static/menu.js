// The menu on every page of somebody who is logged in, and what the account page does.
import { call, Offline } from "./http.js";

/** What of a page is kept for work without a connection goes when its owner goes. */
export async function forgetPages() {
  if ("caches" in window) await caches.delete("pages");
}

document.getElementById("log-out")?.addEventListener("click", async () => {
  try {
    await call("DELETE", "/api/session");
  } finally {
    await forgetPages();
    location.assign("/");
  }
});

document.getElementById("delete-me")?.addEventListener("click", async (event) => {
  const error = event.target.parentElement.querySelector(".error");
  try {
    await call("DELETE", "/api/me");
    await forgetPages();
    location.assign("/");
  } catch (problem) {
    error.textContent = problem instanceof Offline ? event.target.dataset.network : problem.message;
    error.hidden = false;
  }
});
