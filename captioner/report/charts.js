// Elements and charts. Text is only ever set as text.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));

// About `count` round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [5, 2, 1].map((factor) => factor * power).find((size) => size <= rough * 1.2) || power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(10)));
  return found;
}

// series: [{name, tone, dash, points: [[x, y], ...]}]; steps: bars' outline instead of a line with dots.
function chart({ title, xLabel, series, steps = false, fromZero = false }) {
  const drawn = series.map((line) => ({ ...line, points: line.points.filter(([, y]) => y !== null) })).filter((line) => line.points.length);
  if (!drawn.length) return null;
  const [width, height, left, right, top, bottom] = [440, 230, 52, 14, 12, 40];
  const xs = drawn.flatMap((line) => line.points.map((point) => point[0]));
  const ys = drawn.flatMap((line) => line.points.map((point) => point[1]));
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [fromZero ? 0 : Math.min(...ys), Math.max(...ys)];
  if (steps) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y0 === y1) [y0, y1] = [fromZero ? 0 : y0 - Math.abs(y0) * 0.1 - 0.01, y1 + Math.abs(y1) * 0.1 + 0.01];
  if (!fromZero) [y0, y1] = [y0 - (y1 - y0) * 0.06, y1 + (y1 - y0) * 0.06];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const summary = drawn.map((line) => `${line.name}: ${fixed(line.points[0][1])} to ${fixed(line.points.at(-1)[1])}`).join("; ");
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} by ${xLabel}. ${summary}` });
  const yTicks = ticks(y0, y1, 4);
  const digits = Math.max(0, ...yTicks.map((tick) => (String(tick).split(".")[1] || "").length));
  for (const tick of yTicks) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }));
    svg.append(draw("text", { class: "tick", x: left - 8, y: py(tick) + 4, "text-anchor": "end" }, fixed(tick, digits)));
  }
  for (const tick of ticks(x0, x1, 7).filter(Number.isInteger)) {
    svg.append(draw("text", { class: "tick", x: px(tick), y: height - bottom + 18, "text-anchor": "middle" }, String(tick)));
  }
  svg.append(draw("text", { class: "label", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  for (const line of drawn) {
    const corners = steps
      ? [[x0, 0], ...line.points.flatMap(([x, y]) => [[x - 0.5, y], [x + 0.5, y]]), [line.points.at(-1)[0] + 0.5, 0]]
      : line.points;
    const path = corners.map(([x, y], place) => `${place ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    svg.append(draw("path", { class: `line tone-${line.tone}${steps && !line.dash ? " filled" : ""}`, d: path, "stroke-dasharray": line.dash ? "5 4" : "none" }));
    if (steps) continue;
    for (const [x, y] of line.points) {
      const dot = draw("circle", { class: `dot tone-${line.tone}`, cx: px(x), cy: py(y), r: 2.6 });
      dot.append(draw("title", {}, `${line.name}, ${xLabel} ${x}: ${fixed(y, 4)}`));
      svg.append(dot);
    }
  }
  const legend = make("ul", { class: "legend" });
  for (const line of drawn) {
    const key = draw("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" });
    key.append(draw("path", { class: `line tone-${line.tone}`, d: "M1 4L23 4", "stroke-dasharray": line.dash ? "5 4" : "none" }));
    legend.append(make("li", {}, key, line.name));
  }
  return make("figure", { class: "chart" }, make("figcaption", {}, title), svg, legend);
}
