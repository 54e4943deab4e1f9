"use strict";
// The pointer's read-out: the values at the nearest x of every line that has one nearby.
for (const figure of document.querySelectorAll("figure.chart")) {
  const series = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return low < 0 || points.length === 0 ? null : x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
  };
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const rows = series.map((one, index) => ({ name: one.name, index, point: nearest(one.points, x) })).filter((row) => row.point && Math.abs(row.point[0] - x) < 25);
    if (rows.length === 0) return hide();
    const closest = rows.reduce((a, b) => Math.abs(a.point[0] - x) <= Math.abs(b.point[0] - x) ? a : b).point;
    tip.textContent = "";
    const head = document.createElement("b");
    head.textContent = closest[1];
    tip.append(head);
    for (const row of rows) {
      const line = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.className = "swatch c" + row.index;
      line.className = "key";
      line.style.display = "flex";
      line.append(swatch, row.name + "  " + row.point[2]);
      tip.append(line);
    }
    tip.hidden = false;
    const at = closest[0] / svg.viewBox.baseVal.width * box.width;
    const left = at + 12 + tip.offsetWidth > box.width ? at - 12 - tip.offsetWidth : at + 12;
    tip.style.left = Math.max(0, left) + "px";
    cursor.setAttribute("x1", closest[0]);
    cursor.setAttribute("x2", closest[0]);
    cursor.style.visibility = "visible";
  });
}
