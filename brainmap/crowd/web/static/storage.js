// What must survive a reload, in the browser's own database, apart for each account: the tiles at hand with
// their pictures and undo, and the queue of changes that the server has not acknowledged.

const STORES = { queue: { keyPath: "n", autoIncrement: true }, tiles: { keyPath: "tile" } };

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

export class Storage {
  static async open(account) {
    const request = indexedDB.open(`brainmap-${account}`, 1);
    request.onupgradeneeded = () => {
      for (const [name, options] of Object.entries(STORES)) request.result.createObjectStore(name, options);
    };
    const storage = new Storage();
    storage.db = await settled(request);
    return storage;
  }

  /** Store a tile and the changes to send for it, both or none. */
  async save(tile, changes = []) {
    const transaction = this.db.transaction(["tiles", "queue"], "readwrite", { durability: "strict" });
    transaction.objectStore("tiles").put(tile);
    for (const change of changes) transaction.objectStore("queue").add(change);
    await finished(transaction);
  }

  async tiles(project) {
    const all = await settled(this.db.transaction("tiles").objectStore("tiles").getAll());
    return all.filter((tile) => tile.project === project).sort((a, b) => a.order - b.order);
  }

  async forget(token) {
    const transaction = this.db.transaction("tiles", "readwrite");
    transaction.objectStore("tiles").delete(token);
    await finished(transaction);
  }

  /** The oldest changes, in order. */
  async waiting(count = 200) {
    return settled(this.db.transaction("queue").objectStore("queue").getAll(null, count));
  }

  async count() {
    return settled(this.db.transaction("queue").objectStore("queue").count());
  }

  async sent(changes) {
    const transaction = this.db.transaction("queue", "readwrite");
    for (const change of changes) transaction.objectStore("queue").delete(change.n);
    await finished(transaction);
  }
}
