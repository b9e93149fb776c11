// Keeps the page itself for a reload without a connection. Data is none of its business: requests to the interface
// pass untouched, so that what is sent and answered is the page's alone.
const VERSION = "__VERSION__", FILES = __FILES__;
const CODE = `code-${VERSION}`;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CODE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const old = (await caches.keys()).filter((name) => name.startsWith("code-") && name !== CODE);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  const { request } = event, url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  if (FILES.includes(url.pathname)) {
    event.respondWith(caches.match(request).then((kept) => kept ?? fetch(request)));
  } else if (request.mode === "navigate" && (url.pathname.startsWith("/work/") || url.pathname === "/")) {
    event.respondWith(page(request, url));
  }
});

async function page(request, url) {
  try {
    return await fetch(request);
  } catch (error) {
    const pages = await caches.open("pages");
    const [last] = (await pages.keys()).slice(-1);
    const kept = (await pages.match(url.pathname)) ?? (last && url.pathname === "/" && (await pages.match(last)));
    if (kept) return kept;
    throw error;
  }
}
