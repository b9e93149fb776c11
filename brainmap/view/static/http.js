// One way to talk to the server: JSON, and failures as sentences.

export async function call(method, url, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Error("the server does not answer: is brainmap view still running? What was marked is kept.");
  }
  if (response.status === 204) return null;
  const facts = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(facts.error || `the server refused (${response.status})`);
  return facts;
}

export const get = (url) => call("GET", url);
export const post = (url, body) => call("POST", url, body ?? {});
export const who = () => localStorage.getItem("who") || "";
export const number = (value) => (value ?? 0).toLocaleString("en");

/** An element with attributes and children; text is text, never markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
