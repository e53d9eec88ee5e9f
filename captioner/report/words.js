// The words of a caption as buttons, and the attention map of one of them over its image.
function bytes(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

// For each pixel of one direction the two cells that it lies between and how far it is from the first; null outside begin..end.
function between(count, begin, end, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = ((pixel + 0.5 - begin) / (end - begin)) * count - 0.5;
    if (at < -0.5 || at > count - 0.5) return null;
    const low = Math.min(Math.max(Math.floor(at), 0), count - 1);
    return [low, Math.min(low + 1, count - 1), Math.min(Math.max(at - low, 0), 1)];
  });
}

// Darkens what the decoder did not look at. cells: bytes of the grid, row by row; box: the part of the image that the grid covers, as shares.
function shade(shot, cells, [rows, columns], [left, top, right, bottom]) {
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
      let seen = 0; // outside the box the encoder saw nothing
      if (across[x] && down[y]) {
        const [x0, x1, dx] = across[x];
        const [y0, y1, dy] = down[y];
        const upper = cells[y0 * columns + x0] * (1 - dx) + cells[y0 * columns + x1] * dx;
        const lower = cells[y1 * columns + x0] * (1 - dx) + cells[y1 * columns + x1] * dx;
        seen = (upper * (1 - dy) + lower * dy) / 255;
      }
      pixels.data.set([8, 10, 16, 205 * (1 - seen ** 0.8)], (y * width + x) * 4);
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  shot.classList.add("shaded");
}

// One caption: a group of buttons of which one is in the tab order; the arrow keys, Home and End go through the others.
function captionLine(caption, grid, shot, label) {
  const line = make("p", { class: "words", role: "group", "aria-label": `${label}: ${caption.words.join(" ") || "no words"}` });
  if (!caption.words.length) line.append(make("span", { class: "none" }, "(no words)"));
  let pinned = null;
  let map = null;
  const show = (place) => {
    for (const button of shot.parentElement.parentElement.querySelectorAll(".word.on")) button.classList.remove("on");
    shot.classList.remove("shaded");
    delete shot.dataset.word;
    if (place === null || !caption.attention) return;
    map = map || bytes(caption.attention.cells);
    const size = grid[0] * grid[1];
    shade(shot, map.subarray(place * size, (place + 1) * size), grid, caption.attention.box);
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
    line.append(button, place + 1 < caption.words.length ? " " : "");
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
