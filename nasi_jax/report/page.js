// Draws the charts, and shows under the pointer what a point is: its numbers, genotype and cells.
const { charts, cells } = JSON.parse(document.getElementById("data").textContent);
const card = document.getElementById("pointer");

function show(_, event, item, value) {
  card.hidden = value == null || value === "";
  if (card.hidden) return;
  const list = document.createElement("dl");
  for (const [name, text] of Object.entries(value)) {
    list.append(document.createElement("dt"), document.createElement("dd"));
    list.children[list.children.length - 2].textContent = name;
    list.lastChild.textContent = text;
  }
  card.replaceChildren(list);
  const cell = cells[item.datum.cell];
  if (cell) {
    const text = document.createElement("code");
    text.textContent = cell.text;
    const drawing = document.createElement("div");
    drawing.innerHTML = cell.svg; // made by nasi, with all text escaped
    card.append(text, drawing);
  }
  const { width, height } = card.getBoundingClientRect();
  const below = event.clientY + 16 + height < innerHeight;
  const top = below ? event.clientY + 16 : event.clientY - 16 - height;
  card.style.left = `${Math.max(8, Math.min(event.clientX + 16, innerWidth - width - 8))}px`;
  card.style.top = `${Math.max(8, top)}px`;
}

for (const [index, spec] of charts.entries()) {
  const place = document.getElementById(`chart-${index}`);
  vegaEmbed(place, spec, { actions: false, ast: true, renderer: "svg", tooltip: show })
    .catch((error) => { place.textContent = String(error); });
}
addEventListener("scroll", () => { card.hidden = true; }, { passive: true });
