// Lets a pointer or the arrow keys read the step pictures. Everything else on the page is there without it.
"use strict";
for (const map of document.querySelectorAll("svg.map")) {
  const steps = JSON.parse(document.getElementById(map.dataset.steps).textContent);
  const readout = document.getElementById(map.dataset.readout);
  const [left, top, width, height, most] = map.dataset.frame.split(" ").map(Number);
  const [down, across] = map.querySelectorAll(".cross");
  const number = new Intl.NumberFormat("en");
  let column = steps.length - 1, position = -1;

  function attended(text, at) {
    let count = 0, inside = false;
    for (const part of text ? text.split(" ") : []) {
      const [a, b] = part.split("-").map(Number), last = b === undefined ? a : b;
      count += last - a + 1;
      if (a <= at && at <= last) inside = true;
    }
    return [count, inside];
  }

  function show() {
    const s = steps[column], x = left + (column + .5) * width / steps.length;
    position = Math.max(0, Math.min(position < 0 ? s[1] - 1 : position, most - 1));
    const y = top + height - (position + .5) * height / most;
    down.setAttribute("x1", x); down.setAttribute("x2", x);
    across.setAttribute("y1", y); across.setAttribute("y2", y);
    down.style.visibility = across.style.visibility = "visible";
    const [count, inside] = s[2] === "sparse" ? attended(s[3], position) : [s[1], position < s[1]];
    const what = s[2] === "sparse" ? `${number.format(count)} attended (${(100 * count / s[1]).toFixed(1)} %)` : `all attended (${s[2]} step)`;
    const where = position >= s[1] ? "does not exist yet" : inside ? "attended" : "not attended";
    readout.textContent = `Step ${number.format(s[0])}: ${number.format(s[1])} tokens visible, ${what}; position ${number.format(position)}: ${where}`;
  }

  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect(), scale = map.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale - left, y = (event.clientY - box.top) * scale - top;
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    column = Math.floor(x / width * steps.length);
    position = Math.floor((1 - y / height) * most);
    show();
  });
  map.addEventListener("focus", show);
  map.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const move = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step]}[event.key];
    if (!move) return;
    event.preventDefault();
    column = Math.max(0, Math.min(steps.length - 1, column + move[0]));
    position = Math.max(0, position + move[1]);
    show();
  });
}
