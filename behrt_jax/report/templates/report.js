"use strict";
const read = (element) => JSON.parse(element.querySelector("script[type='application/json']").textContent);
const svg = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// A group of maps: one choice of colours, and a line on the nearest point.
for (const group of document.querySelectorAll(".maps[id]")) {
  const { colourings, hover } = read(group);
  const select = group.querySelector("select");
  const legend = group.querySelector(".legend");
  const told = group.querySelector(".told");
  const pictures = [...group.querySelectorAll("svg[role='img']")];
  const points = pictures.map((picture) => [...picture.querySelectorAll("circle:not(.chosen)")]);

  const colour = (name) => {
    const { labels, bands, style } = colourings[name];
    group.classList.remove("two", "ordered", "kinds");
    group.classList.add(style);
    legend.replaceChildren(...labels.map((label, band) => {
      const item = document.createElement("li");
      const key = svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
      key.append(svg("circle", { cx: 5, cy: 5, r: 4, class: `band${band}` }));
      item.append(key, label);
      return item;
    }));
    points.forEach((circles, map) => circles.forEach((circle, place) => {
      circle.setAttribute("class", `band${bands[map][place]}`);
    }));
    pictures.forEach((picture) => {
      const label = picture.getAttribute("aria-label");
      picture.setAttribute("aria-label", label.replace(/Coloured by .*\. The/, () => `Coloured by ${name}. The`));
    });
  };
  const describe = (map, place) => {
    const told = hover[map].length ? [hover[map][place]] : [];
    for (const [name, { labels, bands }] of Object.entries(colourings)) {
      const band = bands[map][place];
      if (labels[0] === "without") { if (band === 1) told.push(name); }
      else told.push(`${name}: ${band < 0 ? "unknown" : labels[band]}`);
    }
    return told.join("; ");
  };
  const mark = (place) => pictures.forEach((picture, map) => {
    const circle = points[map][place];
    if (circle === undefined) return;
    const ring = picture.querySelector(".chosen");
    for (const key of ["cx", "cy"]) ring.setAttribute(key, circle.getAttribute(key));
  });
  group.mark = mark;
  const same = points.every((circles) => circles.length === points[0].length) && !hover.some((lines) => lines.length);
  pictures.forEach((picture, map) => {
    const places = points[map].map((circle) => [+circle.getAttribute("cx"), +circle.getAttribute("cy")]);
    const nearest = (event) => {
      const box = picture.getBoundingClientRect();
      const x = (event.clientX - box.left) * 400 / box.width, y = (event.clientY - box.top) * 400 / box.height;
      let best = -1, least = 144;
      places.forEach(([px, py], place) => {
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) { least = distance; best = place; }
      });
      return best;
    };
    const tell = (event) => {
      const place = nearest(event);
      if (place < 0) return;
      told.textContent = group.name ? group.name(place) : describe(map, place);
      if (same) mark(place);
      if (event.type === "click" && group.choose) group.choose(place);
    };
    picture.addEventListener("pointermove", tell);
    picture.addEventListener("click", tell);
  });
  if (select) select.addEventListener("change", () => colour(select.value));
  colour(Object.keys(colourings)[0]);
}

// Nearest neighbours of a code, chosen by words or on the map.
for (const lookup of document.querySelectorAll(".lookup")) {
  const { names, codes, neighbours, cosines } = read(lookup);
  const group = document.getElementById(lookup.dataset.map);
  const words = lookup.querySelector("input"), list = lookup.querySelector("select");
  const table = lookup.querySelector("table");
  const texts = names.map((name, place) => `${name} ${codes[place]}`.toLowerCase());

  const name = (place) => (names[place] === codes[place] ? codes[place] : `${names[place]} (${codes[place]})`);
  const show = (place) => {
    table.caption.textContent = `Nearest to ${name(place)}`;
    table.tBodies[0].replaceChildren(...neighbours[place].map((other, rank) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name(other);
      row.append(head);
      row.insertCell().textContent = (cosines[place][rank] / 100).toFixed(2);
      return row;
    }));
    group.mark(place);
  };
  const fill = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    const found = texts.map((text, place) => place).filter((place) => wanted.every((word) => texts[place].includes(word)));
    list.replaceChildren(...found.map((place) => new Option(name(place), place)));
    if (found.length) show(found[0]);
    else table.caption.textContent = "No code has these words in its name";
    if (!found.length) table.tBodies[0].replaceChildren();
  };
  group.name = name;
  group.choose = (place) => { words.value = ""; fill(); list.value = place; show(place); };
  words.addEventListener("input", fill);
  list.addEventListener("change", () => show(+list.value));
  fill();
}
