for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.querySelectorAll("thead th");
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      const rows = Array.from(body.rows);
      const key = (row) => row.cells[column].dataset.key;
      rows.sort((a, b) => {
        if (!numeric) return sign * key(a).localeCompare(key(b));
        const x = parseFloat(key(a)), y = parseFloat(key(b));
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return sign * (x - y);
      });
      body.append(...rows);
    });
  });
}

const formula = /^[=+\-@\t\r\n']/;
const quoted = (text) => (/[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
for (const tools of document.querySelectorAll(".tools")) {
  const table = tools.nextElementSibling.querySelector("table");
  const rows = Array.from(table.tBodies[0].rows);
  const field = tools.querySelector("input"), save = tools.querySelector("button");
  const count = tools.querySelector("output");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  if (field) field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = words.length ? shown + " of " + rows.length : "";
  });
  if (save) save.addEventListener("click", () => {
    const lines = [Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent.trim())];
    for (const row of table.tBodies[0].rows) {
      if (row.hidden) continue;
      lines.push(Array.from(row.cells, (cell) => {
        const text = cell.dataset.key.trim();
        if (cell.classList.contains("number")) return text && String(Number(text));
        return formula.test(text) ? "'" + text : text;
      }));
    }
    const text = lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = save.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

const large = document.querySelector("dialog.large");
const picture = large.querySelector("div").appendChild(document.createElement("img")), words = large.querySelector("p");
let opener = null;
for (const button of document.querySelectorAll("button.open")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    opener = button;
    picture.src = image.src;
    picture.alt = image.alt;
    words.textContent = image.alt;
    large.classList.toggle("chart", button.classList.contains("chart"));
    picture.classList.remove("real");
    large.showModal();
  });
}
picture.addEventListener("click", () => picture.classList.toggle("real"));
large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
large.querySelector("button").addEventListener("click", () => large.close());
large.addEventListener("close", () => { if (opener) opener.focus(); });
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}

// Places lead into the viewer: by a link where it serves this page, or else by the command that opens it there.
const served = location.protocol === "http:" && location.pathname === "/report";
const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'");
const folder = location.protocol === "file:" ? decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "") : "RUN";
for (const place of document.querySelectorAll("[data-at]")) {
  const at = place.dataset.at, named = place.textContent;
  if (served) {
    const link = document.createElement("a");
    link.href = "/?at=" + encodeURIComponent(at);
    link.textContent = named || "Look there";
    place.replaceChildren(link);
    continue;
  }
  const command = "brainmap view " + shell(folder) + " --at " + at;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "place";
  button.textContent = named || "Copy the command that looks there";
  button.title = command;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied: " + command;
    } catch {
      button.textContent = command;
    }
    setTimeout(() => { button.textContent = named || "Copy the command that looks there"; }, 4000);
  });
  place.replaceChildren(button);
}
