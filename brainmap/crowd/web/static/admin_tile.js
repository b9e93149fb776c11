// A tile with everybody's clicks and the heat map over it.
const canvas = document.getElementById("viewer");
const base = canvas.dataset.url;

async function bitmap(part) {
  return createImageBitmap(await (await fetch(`${base}/${part}`)).blob());
}

const [image, people] = await Promise.all([bitmap("image"), fetch(`${base}/clicks`).then((answer) => answer.json())]);
let heat = null;
const ZOOM = Math.max(1, Math.ceil(900 / image.width));
canvas.width = image.width * ZOOM;
canvas.height = image.height * ZOOM;

async function draw() {
  const context = canvas.getContext("2d");
  context.setTransform(ZOOM, 0, 0, ZOOM, ZOOM / 2, ZOOM / 2);
  context.drawImage(image, -0.5, -0.5);
  if (document.getElementById("show-heat").checked) {
    heat ??= await bitmap("heat");
    context.drawImage(heat, -0.5, -0.5);
  }
  if (!document.getElementById("show-clicks").checked) return;
  const shown = new Set([...document.querySelectorAll(".person:checked")].map((box) => Number(box.value)));
  people.forEach((person, number) => {
    if (!shown.has(number)) return;
    context.strokeStyle = `hsl(${(number * 137.5) % 360} 90% 65%)`;
    context.lineWidth = 1.8 / ZOOM;
    for (const [x, y] of person.clicks) {
      context.beginPath();
      context.arc(x, y, 3.5, 0, 2 * Math.PI);
      context.stroke();
    }
  });
}

for (const box of document.querySelectorAll("input[type=checkbox]")) box.addEventListener("change", draw);
await draw();
