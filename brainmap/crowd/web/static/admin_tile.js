// A tile with everybody's clicks, the heat map and the detector's cells over it.
const canvas = document.getElementById("viewer");
const base = canvas.dataset.url;

async function bitmap(part) {
  return createImageBitmap(await (await fetch(`${base}/${part}`)).blob());
}

async function list(part) {
  return (await fetch(`${base}/${part}`)).json();
}

const [image, people, detected] = await Promise.all([bitmap("image"), list("clicks"), list("detected")]);
const showDetected = document.getElementById("show-detected");
if (detected) {
  showDetected.disabled = false;
  document.getElementById("detected-count").textContent = ` (${detected.length})`;
}
let heat = null;
const ZOOM = Math.max(1, Math.ceil(900 / image.width));
canvas.width = image.width * ZOOM;
canvas.height = image.height * ZOOM;

// Squares, since clicks are rings; a dark line below keeps them visible on bright tissue.
function drawDetected(context) {
  for (const [width, colour] of [[3.4, "rgb(0 0 0 / 70%)"], [1.6, "white"]]) {
    context.lineWidth = width / ZOOM;
    context.strokeStyle = colour;
    for (const [x, y] of detected) context.strokeRect(x - 4.5, y - 4.5, 9, 9);
  }
}

async function draw() {
  const context = canvas.getContext("2d");
  context.setTransform(ZOOM, 0, 0, ZOOM, ZOOM / 2, ZOOM / 2);
  context.drawImage(image, -0.5, -0.5);
  if (document.getElementById("show-heat").checked) {
    heat ??= await bitmap("heat");
    context.drawImage(heat, -0.5, -0.5);
  }
  if (showDetected.checked) drawDetected(context);
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
