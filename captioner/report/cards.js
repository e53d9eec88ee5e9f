// One image with its captions, small in a card of the gallery or large in the viewer.
const letter = (place) => String.fromCharCode(65 + place);

function imageOf(item) {
  const { image, captions } = item;
  if (!image.webp) return null;
  const alt = captions.map((caption, number) => (captions.length > 1 ? `${letter(number)}: ` : "") + (textOf(caption) || "no words")).join("; ");
  const shot = make("span", { class: "shot" }, make("img", { alt, width: image.width, height: image.height, decoding: "async", src: `data:image/webp;base64,${image.webp}` }));
  shot.style.setProperty("--ratio", image.width / image.height);
  return shot;
}

function chip(number) {
  return make("abbr", { class: `chip tone-${number % 6}`, title: data.experiments[number].name }, letter(number));
}

// The captions of all experiments, each with an element below for its scores; scope as in captionLine.
function captionBlocks(item, shot, scope, below) {
  const several = item.captions.length > 1;
  return item.captions.map((caption, number) => {
    const head = make("div", { class: "caption-head" });
    if (several) head.append(chip(number));
    if (below) head.append(below(caption, number));
    const line = captionLine(caption, data.experiments[number].grid, shot, several ? `Caption of ${letter(number)}` : "Generated caption", scope);
    return make("div", { class: "caption" }, line, head);
  });
}

const referenceList = (texts, label) => make("ul", { class: "references", "aria-label": label }, ...texts.map((text) => make("li", {}, text)));

function makeCard(item, open) {
  const { image, captions } = item;
  const element = make("li", { class: "card" });
  const shot = imageOf(item);
  const frame = make("button", { type: "button", class: shot ? "frame" : "frame bare" }, make("span", { class: "spoken" }, shot ? "Enlarge: " : "Open: "), shot || "outside the sample: text only");
  frame.addEventListener("click", open);
  element.append(frame);
  const figures = captions.map(() => make("span", { class: "figure" }));
  element.append(...captionBlocks(item, shot, element, (_, number) => figures[number]));
  if (image.references.length) element.append(referenceList(image.references.slice(0, 1), "Reference captions"));
  if (image.references.length > 1) {
    element.append(make("details", {}, make("summary", {}, `${image.references.length - 1} more references`), referenceList(image.references.slice(1), "More reference captions")));
  }
  element.append(make("p", { class: "file" }, image.name));
  return { element, figures, frame };
}
