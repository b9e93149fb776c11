// One way to talk to the server: JSON, with an end to waiting, and failures told apart.

/** The server could not be reached, or did not answer in time. */
export class Offline extends Error {}

/** The server answered that it will not do what was asked. */
export class Refused extends Error {
  constructor(status, facts) {
    super(facts.error || String(status));
    this.status = status;
    this.facts = facts;
  }
}

const PATIENCE_MS = 15000;

/** Send a request; resolve to its JSON, or null where there is none. */
export async function call(method, url, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE_MS), credentials: "same-origin", cache: "no-store",
    });
    if (response.status === 204) return null;
    const facts = await response.json();
    if (response.ok) return facts;
    throw new Refused(response.status, facts);
  } catch (error) {
    if (error instanceof Refused) throw error;
    // A proxy's page instead of JSON is no answer of ours either.
    throw new Offline(String(error));
  }
}

/** Fetch a picture as a Blob. */
export async function picture(url) {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(60000), credentials: "same-origin" });
    if (!response.ok) throw new Refused(response.status, {});
    return await response.blob();
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Offline(String(error));
  }
}
