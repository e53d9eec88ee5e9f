// The words of a caption, and the attention of one of them as a heat map over its image.
function bytes(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

// Red, green, blue and opacity of attention 0..1, as captioner/report/heat.py has them.
function heat(strength) {
  const { colours, opacity, opaque_from: opaqueFrom } = data.heat;
  const at = strength * (colours.length - 1);
  const low = Math.min(Math.floor(at), colours.length - 2);
  const colour = colours[low].map((value, channel) => value + (colours[low + 1][channel] - value) * (at - low));
  return [...colour, opacity * Math.min(strength / opaqueFrom, 1)];
}

let palette = null; // of 256 strengths, made when the first map is drawn
const heatPalette = () => {
  palette = palette || Array.from({ length: 256 }, (_, level) => heat(level / 255).map((value, channel) => Math.round(channel < 3 ? value : value * 255)));
  return palette;
};

// What the colours mean.
function heatLegend() {
  const scale = make("span", { class: "scale" });
  const stops = Array.from({ length: 17 }, (_, step) => heat(step / 16)).map(([red, green, blue, alpha]) => `rgb(${red} ${green} ${blue} / ${alpha})`);
  scale.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
  return make("p", { class: "heat-legend" }, "Attention: even share or less ", scale, " largest");
}

// For each pixel of one direction the two cells that it lies between and the share of the second, smoothed as in
// captioner/evaluation/drawing.py; null outside begin..end.
function between(count, begin, end, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = ((pixel + 0.5 - begin) / (end - begin)) * count - 0.5;
    if (at < -0.5 || at > count - 0.5) return null;
    const low = Math.min(Math.max(Math.floor(at), 0), count - 1);
    const way = Math.min(Math.max(at - low, 0), 1);
    return [low, Math.min(low + 1, count - 1), way * way * (3 - 2 * way)];
  });
}

// Lays the map over the image. cells: bytes of the grid, row by row; box: the part of the image that the grid covers, as shares.
function showHeat(shot, cells, [rows, columns], [left, top, right, bottom]) {
  let canvas = shot.querySelector("canvas");
  if (!canvas) {
    canvas = make("canvas", { "aria-hidden": "true" });
    shot.append(canvas);
  }
  const image = shot.querySelector("img");
  [canvas.width, canvas.height] = [Number(image.getAttribute("width")), Number(image.getAttribute("height"))];
  const [width, height] = [canvas.width, canvas.height];
  const pixels = new ImageData(width, height);
  const across = between(columns, left * width, right * width, width);
  const down = between(rows, top * height, bottom * height, height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (!across[x] || !down[y]) continue; // outside the box the encoder saw nothing
      const [x0, x1, dx] = across[x];
      const [y0, y1, dy] = down[y];
      const upper = cells[y0 * columns + x0] * (1 - dx) + cells[y0 * columns + x1] * dx;
      const lower = cells[y1 * columns + x0] * (1 - dx) + cells[y1 * columns + x1] * dx;
      pixels.data.set(heatPalette()[Math.round(upper * (1 - dy) + lower * dy)], (y * width + x) * 4);
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  shot.classList.add("heated");
}

// The caption as it is written; pages of older versions have its words alone.
const textOf = (caption) => (caption.text === undefined ? caption.words.join(" ") : caption.text);

// What stands between each word and the next: a space, or nothing in languages that are written without.
function gaps(caption) {
  const text = textOf(caption);
  let at = 0;
  return caption.words.map((word) => {
    at += word.length;
    return text[at] === " " ? text[at++] : "";
  });
}

// One caption. With attention its words are a group of buttons of which one is in the tab order; the arrow keys, Home and End go through
// the others. scope: the element in which one word at a time is lit.
function captionLine(caption, grid, shot, label, scope) {
  if (!caption.words.length) return make("p", { class: "words" }, make("span", { class: "none" }, "(no words)"));
  const after = gaps(caption);
  if (!caption.attention || !shot) {
    return make("p", { class: "words" }, ...caption.words.flatMap((word, place) => [make("span", { class: "word" }, word), after[place]]));
  }
  const line = make("p", { class: "words", role: "group", "aria-label": `${label}: ${textOf(caption)}` });
  let pinned = null;
  let map = null;
  const show = (place) => {
    for (const button of scope.querySelectorAll(".word.on")) button.classList.remove("on");
    shot.classList.remove("heated");
    delete shot.dataset.word;
    if (place === null) return;
    map = map || bytes(caption.attention.cells);
    const size = grid[0] * grid[1];
    showHeat(shot, map.subarray(place * size, (place + 1) * size), grid, caption.attention.box);
    buttons[place].classList.add("on");
    shot.dataset.word = String(place);
  };
  const buttons = caption.words.map((word, place) => {
    const button = make("button", { type: "button", class: "word", tabindex: place ? "-1" : "0" }, word);
    button.addEventListener("mouseenter", () => show(place));
    button.addEventListener("focus", () => show(place));
    button.addEventListener("click", () => {
      pinned = pinned === place ? null : place;
      show(pinned);
    });
    line.append(button, after[place]);
    return button;
  });
  line.addEventListener("mouseleave", () => show(pinned));
  line.addEventListener("focusout", (event) => {
    if (line.contains(event.relatedTarget)) return;
    pinned = null;
    show(null);
  });
  line.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const goal = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "Escape") {
      pinned = null;
      show(null);
    }
    if (goal === undefined || at < 0) return;
    event.preventDefault();
    const next = buttons[Math.min(Math.max(goal, 0), buttons.length - 1)];
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  });
  return line;
}
